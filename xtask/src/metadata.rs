//! The crates of the workspace with their features and dependencies, as cargo describes them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

/// The output of `cargo metadata`.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    /// The crates of this workspace, and if asked for, all crates that they depend on.
    pub packages: Vec<Package>,
    /// The ids of the crates of this workspace.
    pub workspace_members: BTreeSet<String>,
}

/// A crate.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// The id, which no other crate has.
    pub id: String,
    /// The name.
    pub name: String,
    /// The version.
    pub version: String,
    /// The oldest compiler that builds the crate, if its manifest says so.
    pub rust_version: Option<String>,
    /// Words to find the crate by.
    pub keywords: Vec<String>,
    /// What the manifest lists as dependencies.
    pub dependencies: Vec<Dependency>,
    /// The features, each with what it switches on.
    pub features: BTreeMap<String, Vec<String>>,
}

/// A dependency in a manifest.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// The crate's name.
    pub name: String,
    /// `None` for an ordinary dependency, otherwise `dev` or `build`.
    pub kind: Option<String>,
}

impl Metadata {
    /// Reads the manifests of this workspace. Nothing is downloaded.
    ///
    /// # Errors
    ///
    /// A manifest is not valid.
    pub fn of_workspace(root: &Path) -> io::Result<Self> {
        Self::read(root, &["--no-deps"])
    }

    /// Reads the manifests of this workspace and of everything that it depends on. Cargo downloads the packages that
    /// are not in its cache.
    ///
    /// # Errors
    ///
    /// A manifest is not valid, the lock file does not fit the manifests, or a package cannot be downloaded.
    pub fn with_dependencies(root: &Path) -> io::Result<Self> {
        Self::read(root, &["--locked"])
    }

    fn read(root: &Path, arguments: &[&str]) -> io::Result<Self> {
        let mut command = Command::new(env!("CARGO"));
        command.args(["metadata", "--format-version", "1"]).args(arguments).current_dir(root);
        let output = command.output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The crates of this workspace.
    pub fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }

    /// Every feature of every crate of this workspace as the crate's name and the feature's, and an empty name for each
    /// crate that has features.
    #[must_use]
    pub fn features(&self) -> Vec<(String, String)> {
        let with_features = self.members().filter(|package| !package.features.is_empty());
        with_features
            .flat_map(|package| {
                let features = package.features.keys().filter(|&feature| feature != "default").cloned();
                let features = std::iter::once(String::new()).chain(features);
                features.map(move |feature| (package.name.clone(), feature))
            })
            .collect()
    }

    /// These crates, and all crates of this workspace that depend on them, directly or through others, in tests too. What
    /// depends on `mlx-rs` depends on the `mlx-sys` of this workspace.
    #[must_use]
    pub fn with_dependents<'a>(&'a self, crates: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
        let mut found = crates.clone();
        loop {
            let is_found = |name: &str| found.contains(if name == "mlx-rs" { "mlx-sys" } else { name });
            let depends =
                |package: &&Package| package.dependencies.iter().any(|dependency| is_found(&dependency.name));
            let above: Vec<&str> = self.members().filter(depends).map(|package| &*package.name).collect();
            let before = found.len();
            found.extend(above);
            if found.len() == before {
                return found;
            }
        }
    }

    /// The architectures that the facade's feature `architectures` lists, each as its feature and its crate.
    #[must_use]
    pub fn architectures(&self) -> Vec<(&str, &str)> {
        let Some(facade) = self.packages.iter().find(|package| package.name == "mlx-models") else {
            return Vec::new();
        };
        let of = |feature: &str| facade.features.get(feature).into_iter().flatten();
        of("architectures")
            .flat_map(|feature| {
                of(feature).filter_map(move |part| Some((&**feature, part.strip_prefix("dep:")?)))
            })
            .collect()
    }
}
