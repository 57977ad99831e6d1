//! The names of the kinds of scaling in configs.

/// Every name of a kind in configs, with the name that [`RopeScaling::rope_type`](crate::RopeScaling::rope_type) gives it.
pub(crate) const NAMES: &[(&str, &str)] = &[
    ("default", "default"),
    ("linear", "linear"),
    ("dynamic", "dynamic"),
    ("llama3", "llama3"),
    ("yarn", "yarn"),
    ("deepseek_yarn", "yarn"),
    ("telechat3-yarn", "yarn"),
    ("longrope", "longrope"),
    ("su", "longrope"),
    ("proportional", "proportional"),
    ("mrope", "mrope"),
];

/// The names, for a message.
pub(crate) fn known() -> String {
    let names: Vec<&str> = NAMES.iter().map(|&(name, _)| name).collect();
    names.join(", ")
}
