//! Runs a template.

use std::rc::Rc;

use super::args::Args;
use super::ast::{
    Action, Arguments, Body, Comparison, Expr, For, Kind, Macro, Operator, Statement, Target, Template,
};
use super::error::{Error, Result, short};
use super::numbers::{negative, positive};
use super::store::{self, Loop};
use super::texts::joined;
use super::value::{Dict, Function, Scope, ScopeOf, Value};
use super::{attributes, filters, methods, ops, run, sequences, tests};

/// The names that every template has besides its variables.
const GLOBALS: [&str; 8] =
    ["cycler", "dict", "joiner", "lipsum", "namespace", "raise_exception", "range", "strftime_now"];

/// The maximum length of a `range`, as in Jinja2's sandbox.
const LONGEST_RANGE: usize = 100_000;

/// How the statements of a block ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

pub(super) struct Interpreter<'a> {
    pub(super) template: &'a Template,
    pub(super) root: Rc<Scope>,
    /// Writes the local time in a format.
    pub(super) clock: &'a dyn Fn(&str) -> std::result::Result<String, String>,
}

impl Interpreter<'_> {
    /// Renders the whole template.
    pub(super) fn run(&self) -> Result<String> {
        let mut out = String::new();
        self.body(&self.template.body, &self.root, &mut out)?;
        Ok(out)
    }

    fn body(&self, body: &Body, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        for statement in body {
            let flow = self.statement(statement, scope, out).map_err(|error| error.at(statement.line))?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    /// Renders a block in its own scope, and returns how it ended.
    fn captured(&self, body: &Body, scope: &Rc<Scope>) -> Result<(String, Flow)> {
        let mut out = String::new();
        let flow = self.body(body, &Scope::inside(scope), &mut out)?;
        Ok((out, flow))
    }

    #[allow(clippy::too_many_lines, reason = "a table of the statements")]
    fn statement(&self, statement: &Statement, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        let _level = run::deeper()?;
        run::steps(1)?;
        match &statement.kind {
            Action::Text(text) => write(text, out)?,
            Action::Print(values) => {
                for value in values {
                    write(&self.eval(value, scope)?.to_text()?, out)?;
                }
            }
            Action::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.eval(test, scope)?.is_true() {
                        return self.body(body, scope, out);
                    }
                }
                return self.body(otherwise, scope, out);
            }
            Action::For(of) => {
                let over = self.eval(&of.over, scope)?;
                self.run_loop(of, &over, scope, 0, out)?;
            }
            Action::Set(target, value) => {
                let value = self.eval(value, scope)?;
                self.assign(target, value, scope)?;
            }
            Action::SetBlock(target, filter, body) => {
                return self.set_block(target, filter.as_ref(), body, scope);
            }
            Action::With(names, body) => {
                let inner = Scope::inside(scope);
                for (target, value) in names {
                    let value = self.eval(value, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.body(body, &inner, out);
            }
            Action::Macro(of) => {
                if let Some(name) = &of.name {
                    scope.set(name, self.closure(of, scope)?)?;
                }
            }
            Action::CallBlock(call, body) => {
                self.call_block(call, body, scope, out)?;
            }
            Action::FilterBlock(filter, body) => {
                let (text, flow) = self.captured(body, scope)?;
                if flow != Flow::On {
                    return Ok(flow);
                }
                write(&self.filtered(filter, Value::text(text)?, scope)?.to_text()?, out)?;
            }
            Action::Block(of) if of.required => {
                return Err(Error::new(format!("required block {:?} not found", &*of.name)));
            }
            Action::Block(of) => {
                let scope = Scope::inside(if of.scoped { scope } else { &self.root });
                self.body(&of.body, &scope, out)?;
            }
            Action::Generation(body) => {
                write(&self.call_macro(body, scope, Args::default())?.to_text()?, out)?;
            }
            Action::AutoEscape(on, body) => {
                if self.eval(on, scope)?.is_true() {
                    return Err(Error::new("autoescape is not supported"));
                }
                return self.body(body, &Scope::inside(scope), out);
            }
            Action::Break => return Ok(Flow::Break),
            Action::Continue => return Ok(Flow::Continue),
            Action::OtherTemplate(tag) => {
                return Err(Error::new(format!("{tag} needs another template, and there is none")));
            }
        }
        Ok(Flow::On)
    }

    /// `{% set name %}text{% endset %}`. The text is computed even if a loop control then skips the assignment.
    fn set_block(
        &self,
        target: &Target,
        filter: Option<&Expr>,
        body: &Body,
        scope: &Rc<Scope>,
    ) -> Result<Flow> {
        let (text, flow) = self.captured(body, scope)?;
        let text = Value::text(text)?;
        let text = match filter {
            Some(filter) => self.filtered(filter, text, scope)?,
            None => text,
        };
        if flow == Flow::On {
            self.assign(target, text, scope)?;
        }
        Ok(flow)
    }

    /// `{% call f() %}text{% endcall %}`.
    fn call_block(&self, call: &Expr, body: &Rc<Macro>, scope: &Rc<Scope>, out: &mut String) -> Result<()> {
        let caller = self.closure(body, scope)?;
        let Kind::Call(function, arguments) = &call.kind else { return Ok(()) };
        let function = self.eval(function, scope)?;
        let mut args = self.arguments(arguments, scope)?;
        args.named.push(("caller".into(), caller));
        write(&self.call(&function, args).map_err(|error| error.at(call.line))?.to_text()?, out)
    }

    fn run_loop(
        &self,
        of: &Rc<For>,
        over: &Value,
        scope: &Rc<Scope>,
        depth: usize,
        out: &mut String,
    ) -> Result<()> {
        let mut items = over.iterate()?;
        if let Some(test) = &of.test {
            run::elements(items.len())?;
            let mut kept = Vec::new();
            for item in items.iter() {
                let inner = Scope::inside(scope);
                self.assign(&of.target, item.clone(), &inner)?;
                if self.eval(test, &inner)?.is_true() {
                    kept.push(item.clone());
                }
            }
            items = Rc::new(kept);
        }
        // A loop whose body ended early each time counts as a loop that never ran.
        let mut ran = false;
        if !items.is_empty() {
            let recursive = of.recursive.then(|| (Rc::clone(of), Rc::clone(scope)));
            let state = Loop { items: Rc::clone(&items), index: 0, depth, changed: None, recursive };
            let number = store::new_loop(state)?;
            let name: Rc<str> = "loop".into();
            let mut index = 0;
            while let Some(item) = items.get(index) {
                run::steps(1)?;
                store::with_loop(number, |state| state.index = index);
                let inner = Scope::inside(scope);
                inner.set(&name, Value::Loop(number))?;
                self.assign(&of.target, item.clone(), &inner)?;
                match self.body(&of.body, &inner, out)? {
                    Flow::On => ran = true,
                    Flow::Continue => {}
                    Flow::Break => break,
                }
                // The body may have advanced the loop itself, if it iterated over `loop`.
                index = store::with_loop(number, |state| state.index).unwrap_or(index) + 1;
            }
        }
        if !ran {
            self.body(&of.otherwise, &Scope::inside(scope), out)?;
        }
        Ok(())
    }

    fn assign(&self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(name) => scope.set(name, value)?,
            Target::Attribute(name, attribute) => {
                let Some(Value::Namespace(number)) = self.lookup(name, scope)? else {
                    return Err(Error::new("cannot assign attribute on non-namespace object"));
                };
                check_attribute(attribute)?;
                store::namespace(number, |of| of.insert(Value::Str(Rc::clone(attribute)), value))
                    .unwrap_or(Ok(()))?;
            }
            Target::Tuple(targets) => {
                let items = value.iterate()?;
                if items.len() != targets.len() {
                    let problem = if items.len() > targets.len() { "too many" } else { "not enough" };
                    let expected = targets.len();
                    return Err(Error::new(format!("{problem} values to unpack (expected {expected})")));
                }
                for (target, item) in targets.iter().zip(items.iter()) {
                    self.assign(target, item.clone(), scope)?;
                }
            }
        }
        Ok(())
    }

    fn lookup(&self, name: &str, scope: &Rc<Scope>) -> Result<Option<Value>> {
        if let Some(value) = scope.get(name)? {
            return Ok(Some(value));
        }
        if name == "self" {
            run::bytes(16 * self.template.blocks.len() as u64)?;
            let names = self.template.blocks.iter().map(|block| Rc::clone(&block.name));
            return Ok(Some(Value::Blocks(names.collect())));
        }
        let global = GLOBALS.iter().find(|global| **global == name);
        Ok(global.map(|global| Value::function(Function::Global(global))))
    }

    fn closure(&self, of: &Rc<Macro>, scope: &Rc<Scope>) -> Result<Value> {
        store::keep_scope(scope)?;
        Ok(Value::function(Function::Macro(Rc::clone(of), ScopeOf(Rc::clone(scope)))))
    }

    // Expressions

    fn eval(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        let _level = run::deeper()?;
        run::steps(1)?;
        self.eval_kind(expr, scope).map_err(|error| error.at(expr.line))
    }

    fn boxed(&self, expr: &Option<Box<Expr>>, scope: &Rc<Scope>) -> Result<Option<Value>> {
        expr.as_ref().map(|expr| self.eval(expr, scope)).transpose()
    }

    fn slice(
        &self,
        of: &Expr,
        [start, stop, step]: &[Option<Box<Expr>>; 3],
        constant: bool,
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        let of = self.eval(of, scope)?;
        let part = |part| self.boxed(part, scope);
        let parts = [part(start)?, part(stop)?, part(step)?];
        match sequences::slice(&of, parts) {
            // Jinja2 has computed this slice when it compiled the template, with other rules than Python's.
            Err(_) if constant && !sequences::is_sliceable(&of) => Ok(Value::undefined("no such slice")),
            result => result,
        }
    }

    fn concat(&self, parts: &[Expr], scope: &Rc<Scope>) -> Result<Value> {
        run::bytes(16 * parts.len() as u64)?;
        let mut texts = Vec::with_capacity(parts.len());
        for part in parts {
            texts.push(self.eval(part, scope)?.to_text()?);
        }
        Value::text(joined(&texts, "")?)
    }

    /// `first < second <= third`, up to the first comparison that is false.
    fn compare(&self, first: &Expr, others: &[(Comparison, Expr)], scope: &Rc<Scope>) -> Result<bool> {
        let mut left = self.eval(first, scope)?;
        for (comparison, right) in others {
            let right = self.eval(right, scope)?;
            if !ops::compare(*comparison, &left, &right)? {
                return Ok(false);
            }
            left = right;
        }
        Ok(true)
    }

    #[allow(clippy::too_many_lines, reason = "a table of the expressions")]
    fn eval_kind(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        let all = |items: &[Expr]| {
            run::elements(items.len())?;
            items.iter().map(|item| self.eval(item, scope)).collect::<Result<Vec<_>>>()
        };
        Ok(match &expr.kind {
            Kind::Const(value) => value.into(),
            Kind::Name(name) => match self.lookup(name, scope)? {
                Some(value) => value,
                None => Value::undefined(format!("'{}' is undefined", short(name))),
            },
            Kind::Tuple(items) => Value::tuple(all(items)?)?,
            Kind::List(items) => Value::list(all(items)?)?,
            Kind::Dict(items) => {
                let mut dict = Dict::default();
                for (key, value) in items {
                    dict.insert(self.eval(key, scope)?, self.eval(value, scope)?)?;
                }
                Value::dict(dict)
            }
            Kind::Attribute(of, name) => attributes::attribute(&self.eval(of, scope)?, name)?,
            Kind::Item(of, key) => {
                let of = self.eval(of, scope)?;
                attributes::item(&of, &self.eval(key, scope)?)?
            }
            Kind::Slice(of, parts) => self.slice(of, parts, expr.constant, scope)?,
            Kind::Call(function, arguments) => {
                let function = self.eval(function, scope)?;
                let args = self.arguments(arguments, scope)?;
                self.call(&function, args)?
            }
            Kind::Filter(of, name, arguments) => {
                let of = self.boxed(of, scope)?.unwrap_or_else(|| "".into());
                filters::call(name, &of, self.arguments(arguments, scope)?)?
            }
            Kind::Test(of, name, arguments) => {
                let of = self.eval(of, scope)?;
                Value::Bool(tests::call(name, &of, self.arguments(arguments, scope)?)?)
            }
            Kind::Not(of) => Value::Bool(!self.eval(of, scope)?.is_true()),
            Kind::Negative(of) => negative(&self.eval(of, scope)?)?,
            Kind::Positive(of) => positive(&self.eval(of, scope)?)?,
            Kind::Binary(operator, a, b) => {
                let written = *operator == Operator::Power && a.constant && !b.constant;
                let a = self.eval(a, scope)?;
                let b = self.eval(b, scope)?;
                if written { power_of_constant(&a, &b)? } else { ops::binary(*operator, &a, &b)? }
            }
            Kind::Concat(parts) => self.concat(parts, scope)?,
            Kind::Compare(first, others) => Value::Bool(self.compare(first, others, scope)?),
            Kind::And(a, b) => {
                let a = self.eval(a, scope)?;
                if a.is_true() { self.eval(b, scope)? } else { a }
            }
            Kind::Or(a, b) => {
                let a = self.eval(a, scope)?;
                if a.is_true() { a } else { self.eval(b, scope)? }
            }
            Kind::Condition(test, then, otherwise) => {
                if self.eval(test, scope)?.is_true() {
                    self.eval(then, scope)?
                } else {
                    let missing = || Value::undefined("the condition is false and there is no else");
                    self.boxed(otherwise, scope)?.unwrap_or_else(missing)
                }
            }
        })
    }

    /// Applies a chain of filters to a text.
    fn filtered(&self, filter: &Expr, text: Value, scope: &Rc<Scope>) -> Result<Value> {
        let _level = run::deeper()?;
        let Kind::Filter(inner, name, arguments) = &filter.kind else { return Ok(text) };
        let text = match inner {
            Some(inner) => self.filtered(inner, text, scope)?,
            None => text,
        };
        let args = self.arguments(arguments, scope)?;
        filters::call(name, &text, args).map_err(|error| error.at(filter.line))
    }

    fn arguments(&self, arguments: &Arguments, scope: &Rc<Scope>) -> Result<Args> {
        // Some of the parts exist for a moment only.
        run::elements((arguments.positional.len() + arguments.named.len()).saturating_sub(8))?;
        let mut args = Args::default();
        for value in &arguments.positional {
            args.positional.push(self.eval(value, scope)?);
        }
        for (name, value) in &arguments.named {
            args.named.push((Rc::clone(name), self.eval(value, scope)?));
        }
        if let Some(list) = self.boxed(&arguments.list, scope)? {
            let items = list.iterate()?;
            run::elements(items.len())?;
            args.positional.extend(items.iter().cloned());
        }
        if let Some(dict) = self.boxed(&arguments.dict, scope)? {
            let Value::Dict(dict) = &dict else {
                return Err(Error::new("argument after ** must be a mapping"));
            };
            run::elements(dict.len())?;
            for (name, value) in dict.entries() {
                let name = name.as_str().ok_or_else(|| Error::new("keywords must be strings"))?;
                if args.named.iter().any(|(of, _)| of == name) {
                    return Err(Error::new(format!(
                        "got multiple values for keyword argument '{}'",
                        short(name)
                    )));
                }
                run::steps(args.named.len() / 8)?;
                args.named.push((Rc::clone(name), value.clone()));
            }
        }
        Ok(args)
    }

    fn call(&self, function: &Value, args: Args) -> Result<Value> {
        let _level = run::deeper()?;
        match function.defined()? {
            Value::Function(function) => match &**function {
                Function::Global(name) => self.global(name, args),
                Function::Method(of, name) => methods::call(of, name, args),
                Function::Macro(of, scope) => self.call_macro(of, &scope.0, args),
                Function::Block(name) => {
                    let block = self.template.blocks.iter().find(|block| block.name == *name);
                    let missing = || Error::new(format!("there is no block {name:?}"));
                    let block = block.ok_or_else(missing)?;
                    let (text, _) = self.captured(&block.body, &self.root)?;
                    Value::text(text)
                }
                Function::Joiner(separator, used) => {
                    Ok(if used.replace(true) { separator.clone() } else { "".into() })
                }
            },
            Value::Loop(number) => {
                let found =
                    store::with_loop(*number, |of| of.recursive.clone().map(|found| (found, of.depth)));
                let Some(((of, scope), depth)) = found.flatten() else {
                    let problem = "the loop must have the 'recursive' marker to be called recursively";
                    return Err(Error::new(problem));
                };
                let [over] = args.bind("loop", ["iterable"], 1)?;
                let mut out = String::new();
                self.run_loop(&of, &over.unwrap_or(Value::None), &scope, depth + 1, &mut out)?;
                Value::text(out)
            }
            other => Err(Error::new(format!("'{}' object is not callable", other.type_name()))),
        }
    }

    fn call_macro(&self, of: &Rc<Macro>, scope: &Rc<Scope>, mut args: Args) -> Result<Value> {
        let name = || of.name.as_ref().map_or_else(|| "None".to_owned(), |name| format!("{:?}", &**name));
        run::steps(of.parameters.len().saturating_mul(args.named.len()) / 8)?;
        let inner = Scope::inside(scope);
        let mut positional = args.positional.into_iter();
        let mut explicit_caller = false;
        let mut missing = Vec::new();
        for (parameter, default) in &of.parameters {
            let value = match positional.next() {
                Some(value) => Some(value),
                None => {
                    let place = args.named.iter().position(|(name, _)| name == parameter);
                    explicit_caller |= **parameter == *"caller";
                    place.map(|place| args.named.remove(place).1)
                }
            };
            match value {
                Some(value) => inner.set(parameter, value)?,
                None => missing.push((parameter, default)),
            }
        }
        // All parameters must be defined before a default value is computed, because a default may read the
        // parameters before it.
        for (parameter, default) in missing {
            let value = match default {
                Some(default) => self.eval(default, &inner)?,
                None => Value::undefined(format!("parameter '{parameter}' was not provided")),
            };
            inner.set(parameter, value)?;
        }
        explicit_caller |= of.parameters.iter().any(|(name, _)| **name == *"caller");
        if of.reads_caller && !explicit_caller {
            let place = args.named.iter().position(|(name, _)| **name == *"caller");
            let caller = place.map(|place| args.named.remove(place).1).filter(|caller| !caller.is_none());
            inner.set(&"caller".into(), caller.unwrap_or_else(|| Value::undefined("no caller defined")))?;
        }
        if of.reads_kwargs {
            let pairs = args.named.into_iter().map(|(name, value)| (Value::Str(name), value));
            inner.set(&"kwargs".into(), Value::dict(Dict::from_pairs(pairs)?))?;
        } else if let Some((argument, _)) = args.named.first() {
            return Err(Error::new(format!(
                "macro {} takes no keyword argument '{}'",
                name(),
                short(argument)
            )));
        }
        let rest: Vec<Value> = positional.collect();
        if of.reads_varargs {
            inner.set(&"varargs".into(), Value::tuple(rest)?)?;
        } else if !rest.is_empty() {
            let most = of.parameters.len();
            return Err(Error::new(format!("macro {} takes not more than {most} argument(s)", name())));
        }
        let mut out = String::new();
        self.body(&of.body, &inner, &mut out)?;
        Value::text(out)
    }

    fn global(&self, name: &str, args: Args) -> Result<Value> {
        match name {
            "range" => range(args),
            "dict" => Ok(Value::dict(dict(args)?)),
            "namespace" => {
                let attributes = dict(args)?;
                for (name, _) in attributes.entries() {
                    if let Some(name) = name.as_str() {
                        check_attribute(name)?;
                    }
                }
                Ok(Value::Namespace(store::new_namespace(attributes)?))
            }
            "cycler" => {
                if args.positional.is_empty() {
                    return Err(Error::new("at least one item has to be provided"));
                }
                if !args.named.is_empty() {
                    return Err(Error::new("cycler() got an unexpected keyword argument"));
                }
                Value::cycler(args.positional)
            }
            "joiner" => {
                let [separator] = args.bind("joiner", ["sep"], 0)?;
                let separator = separator.unwrap_or_else(|| ", ".into());
                Value::joiner(separator)
            }
            "raise_exception" => {
                let [message] = args.bind("raise_exception", ["message"], 1)?;
                let message = message.unwrap_or(Value::None);
                Err(Error::raised(if message.is_none() { "".into() } else { message.to_text()? }))
            }
            "strftime_now" => {
                let [format] = args.bind("strftime_now", ["format"], 1)?;
                let format = format.unwrap_or(Value::None);
                let format = format.defined()?.as_str().ok_or_else(|| {
                    Error::new(format!("strftime() argument must be str, not {}", format.type_name()))
                })?;
                run::bytes(64 * format.len() as u64)?;
                let written = (self.clock)(format);
                Value::text(written.map_err(|problem| {
                    Error::new(format!("strftime_now cannot write {:?}: {}", short(format), short(&problem)))
                })?)
            }
            _ => Err(Error::new(format!("the function {name} is not supported"))),
        }
    }
}

/// Jinja2 computes a constant when it compiles the template and writes it as source, so Python reads `-2 ** n`.
fn power_of_constant(a: &Value, b: &Value) -> Result<Value> {
    let minus = match a {
        Value::Int(of) => *of < 0,
        Value::Float(of) => of.is_sign_negative() && !of.is_nan(),
        _ => false,
    };
    if minus {
        return negative(&ops::binary(Operator::Power, &negative(a)?, b)?);
    }
    ops::binary(Operator::Power, a, b)
}

fn write(text: &str, out: &mut String) -> Result<()> {
    run::bytes(text.len() as u64)?;
    *out += text;
    Ok(())
}

fn check_attribute(name: &str) -> Result<()> {
    if name.starts_with('_') {
        return Err(Error::new(format!(
            "chat templates cannot store underscore-prefixed attributes on a namespace, but got '{}'",
            short(name)
        )));
    }
    Ok(())
}

fn range(args: Args) -> Result<Value> {
    if !args.named.is_empty() {
        return Err(Error::new("range() takes no keyword arguments"));
    }
    let numbers = args.positional.iter().map(Value::index).collect::<Result<Vec<_>>>()?;
    let (start, stop, step) = match numbers[..] {
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step] => (start, stop, step),
        _ => return Err(Error::new(format!("range expected 1 to 3 arguments, got {}", numbers.len()))),
    };
    if step == 0 {
        return Err(Error::new("range() arg 3 must not be zero"));
    }
    let range = Value::Range(start, stop, step);
    if range.length()? > LONGEST_RANGE {
        return Err(Error::limit(format!(
            "a range has more than {LONGEST_RANGE} elements, as in Jinja2's sandbox"
        )));
    }
    Ok(range)
}

/// Python's `dict`.
fn dict(args: Args) -> Result<Dict> {
    let mut dict = Dict::default();
    if args.positional.len() > 1 {
        let given = args.positional.len();
        return Err(Error::new(format!("dict expected at most 1 argument, got {given}")));
    }
    match args.positional.first() {
        Some(Value::Dict(of)) => {
            dict = of.copied()?;
        }
        Some(pairs) => {
            for pair in pairs.defined()?.iterate()?.iter() {
                let pair = pair.iterate()?;
                let [key, value] = &pair[..] else {
                    return Err(Error::new(format!(
                        "dictionary update sequence element has length {}",
                        pair.len()
                    )));
                };
                dict.insert(key.clone(), value.clone())?;
            }
        }
        None => {}
    }
    for (name, value) in args.named {
        dict.insert(Value::Str(name), value)?;
    }
    Ok(dict)
}
