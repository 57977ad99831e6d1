//! Values as text: Python's `str` and `repr`.

use std::rc::Rc;

use super::error::Result;
use super::value::{Function, Value, counted};
use super::{python, run, store};

impl Value {
    /// Python's `str`, which is counted.
    pub(super) fn to_text(&self) -> Result<Rc<str>> {
        match self {
            Self::Str(text) | Self::Markup(text) => Ok(Rc::clone(text)),
            Self::Undefined(_) => Ok("".into()),
            _ => counted(&self.repr()?),
        }
    }

    /// Python's `repr`, which is counted.
    pub(super) fn repr(&self) -> Result<String> {
        let mut out = String::new();
        self.write_repr(&mut out, &mut Vec::new())?;
        Ok(out)
    }

    /// `around` are the namespaces that contain this value.
    fn write_repr(&self, out: &mut String, around: &mut Vec<usize>) -> Result<()> {
        let before = out.len();
        match self {
            Self::Undefined(_) => *out += "Undefined",
            Self::None => *out += "None",
            Self::Bool(value) => *out += if *value { "True" } else { "False" },
            Self::Int(value) => *out += &value.to_string(),
            Self::Float(value) => *out += &python::float(*value),
            Self::Str(text) => {
                run::bytes(python::longest_quote(text))?;
                python::quote(text, out);
                return Ok(());
            }
            Self::Markup(text) => {
                run::bytes(python::longest_quote(text))?;
                *out += "Markup(";
                python::quote(text, out);
                out.push(')');
            }
            Self::List(list) => {
                write_all(&list.items, ["[", "]"], out, around)?;
                return Ok(());
            }
            Self::Tuple(list) => {
                write_all(&list.items, ["(", if list.items.len() == 1 { ",)" } else { ")" }], out, around)?;
                return Ok(());
            }
            Self::Dict(dict) => return write_dict(dict.entries(), out, around),
            Self::View(_, _) => {
                *out += self.type_name();
                out.push('(');
                write_all(&self.iterate()?, ["[", "]"], out, around)?;
                out.push(')');
                return Ok(());
            }
            Self::Range(start, stop, 1) => *out += &format!("range({start}, {stop})"),
            Self::Range(start, stop, step) => *out += &format!("range({start}, {stop}, {step})"),
            Self::Namespace(number) => write_namespace(*number, out, around)?,
            Self::Loop(number) => {
                let of = store::with_loop(*number, |of| (of.index + 1, of.items.len())).unwrap_or_default();
                *out += &format!("<LoopContext {}/{}>", of.0, of.1);
            }
            Self::Function(function) => write_function(function, out),
            Self::Iterator(iterator) => {
                *out += &match iterator.name {
                    "list_reverseiterator" => "<list_reverseiterator object at 0x0>".to_owned(),
                    name => format!("<generator object {name} at 0x0>"),
                }
            }
            Self::Cycler(_) => *out += "<jinja2.utils.Cycler object at 0x0>",
            Self::Blocks(_) => *out += "<TemplateReference None>",
        }
        run::steps(1)?;
        run::bytes((out.len() - before) as u64)
    }
}

fn write_namespace(number: usize, out: &mut String, around: &mut Vec<usize>) -> Result<()> {
    *out += "<Namespace ";
    if around.contains(&number) {
        *out += "{...}";
    } else {
        run::elements(2 * store::namespace(number, |of| of.len()).unwrap_or(0))?;
        let entries = store::namespace(number, |of| of.entries().to_vec()).unwrap_or_default();
        let level = run::deeper()?;
        around.push(number);
        write_dict(&entries, out, around)?;
        around.pop();
        drop(level);
    }
    out.push('>');
    Ok(())
}

fn write_function(function: &Function, out: &mut String) {
    match function {
        Function::Macro(of, _) => match &of.name {
            Some(name) => {
                *out += "<Macro ";
                python::quote(name, out);
                out.push('>');
            }
            None => *out += "<Macro anonymous>",
        },
        Function::Global(name) => *out += &format!("<function {name} at 0x0>"),
        Function::Method(of, name) => {
            *out += &format!("<built-in method {name} of {} object at 0x0>", of.type_name());
        }
        Function::Block(name) => *out += &format!("<BlockReference {name}>"),
        Function::Joiner(..) => *out += "<jinja2.utils.Joiner object at 0x0>",
    }
}

fn write_all(items: &[Value], ends: [&str; 2], out: &mut String, around: &mut Vec<usize>) -> Result<()> {
    run::bytes(2 + 2 * items.len() as u64)?;
    *out += ends[0];
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            *out += ", ";
        }
        item.write_repr(out, around)?;
    }
    *out += ends[1];
    Ok(())
}

fn write_dict(entries: &[(Value, Value)], out: &mut String, around: &mut Vec<usize>) -> Result<()> {
    run::bytes(2 + 4 * entries.len() as u64)?;
    out.push('{');
    for (index, (key, value)) in entries.iter().enumerate() {
        if index > 0 {
            *out += ", ";
        }
        key.write_repr(out, around)?;
        *out += ": ";
        value.write_repr(out, around)?;
    }
    out.push('}');
    Ok(())
}
