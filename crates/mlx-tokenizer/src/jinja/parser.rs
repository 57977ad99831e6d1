//! Parses tokens into a syntax tree, by the rules of Jinja2's parser.

use std::rc::Rc;

use super::ast::{
    Action, Arguments, Block, Body, Comparison, Constant, Expr, For, Kind, Macro, Operator, Statement,
    Target, Template,
};
use super::error::{Error, Result, short};
use super::lexer::{Token, tokens};
use super::names;
use super::run::{self, MOST_NAMES};

/// The maximum depth of nested expressions or blocks. Python compiles about half of it.
const MOST_NESTED: usize = 400;

/// Parses a template.
pub(super) fn parse(source: &str) -> Result<Template> {
    let mut parser = Parser {
        tokens: tokens(source)?,
        at: 0,
        depth: 0,
        soft: false,
        in_loop: false,
        loops: 0,
        reads: Vec::new(),
        unknown: Vec::new(),
        blocks: Vec::new(),
        open: Vec::new(),
    };
    let body = parser.statements(&[]).map_err(|error| error.at(parser.line()))?;
    if let Some(unknown) = parser.unknown.into_iter().find(|unknown| !unknown.soft) {
        return Err(Error::syntax(unknown.problem).at(unknown.line));
    }
    Ok(Template { body, blocks: parser.blocks })
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
    /// Whether this is directly inside an `if`, where an unknown filter is an error only when it is used.
    soft: bool,
    in_loop: bool,
    /// The number of enclosing loops, including those in macros.
    loops: usize,
    /// Which of `caller`, `kwargs`, `varargs` the bodies of the enclosing macros read.
    reads: Vec<[bool; 3]>,
    unknown: Vec<Unknown>,
    blocks: Vec<Rc<Block>>,
    /// The names of the open tags.
    open: Vec<Rc<str>>,
}

/// An unknown filter or test.
struct Unknown {
    problem: String,
    line: usize,
    soft: bool,
}

impl Parser {
    fn line(&self) -> usize {
        self.tokens[self.at].0
    }

    fn current(&self) -> &Token {
        &self.tokens[self.at].1
    }

    fn ahead(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].1
    }

    fn next(&mut self) -> Token {
        let token = self.current().clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.current(), Token::Symbol(of) if *of == symbol)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.current(), Token::Name(of) if **of == *name)
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = self.is(symbol);
        if found {
            self.next();
        }
        found
    }

    fn take_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    fn expected(&self, what: &str) -> Error {
        if *self.current() == Token::End {
            return Error::syntax(format!("unexpected end of template, expected {what}"));
        }
        Error::syntax(format!("expected {what}, got '{}'", self.current().said()))
    }

    fn expect(&mut self, symbol: &str) -> Result<()> {
        if self.take(symbol) { Ok(()) } else { Err(self.expected(&format!("'{symbol}'"))) }
    }

    fn expect_token(&mut self, token: &Token) -> Result<()> {
        if self.current() != token {
            return Err(self.expected(&format!("'{}'", token.said())));
        }
        self.next();
        Ok(())
    }

    fn name(&mut self) -> Result<Rc<str>> {
        match self.current().clone() {
            Token::Name(name) => {
                self.next();
                Ok(name)
            }
            _ => Err(self.expected("a name")),
        }
    }

    fn deeper<T>(&mut self, with: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth += 1;
        if self.depth > MOST_NESTED {
            return Err(Error::limit(format!("it nests more than {MOST_NESTED} expressions or blocks")));
        }
        let result = with(self);
        self.depth -= 1;
        result
    }

    fn expr(&self, line: usize, kind: Kind, inside: usize) -> Result<Expr> {
        if inside >= MOST_NESTED {
            return Err(Error::limit(format!("it nests more than {MOST_NESTED} expressions or blocks")));
        }
        // Counted with the capacity of the list that it is in.
        run::bytes(4 * size_of::<Expr>() as u64)?;
        Ok(Expr::new(line, inside + 1, kind))
    }

    // Statements

    /// Parses statements up to a tag with one of these names. The name of that tag is the next token.
    fn statements(&mut self, ends: &[&str]) -> Result<Body> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.current().clone() {
                Token::Data(text) => {
                    self.next();
                    body.push(Statement { line, kind: Action::Text(text) });
                }
                Token::VariableBegin => {
                    self.next();
                    let value = self.tuple(true, false)?;
                    self.expect_token(&Token::VariableEnd)?;
                    body.push(Statement { line, kind: Action::Print(vec![value]) });
                }
                Token::BlockBegin => {
                    self.next();
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(body);
                    }
                    let line = self.line();
                    let Token::Name(tag) = self.current().clone() else {
                        return Err(Error::syntax("tag name expected"));
                    };
                    self.open.push(tag);
                    let kind = self.deeper(Self::statement)?;
                    self.open.pop();
                    body.push(Statement { line, kind });
                    self.expect_token(&Token::BlockEnd)?;
                }
                Token::End if ends.is_empty() => return Ok(body),
                _ => {
                    let open = self.open.last().map(|tag| format!(" (the block {tag:?} is open)"));
                    let ends: Vec<_> = ends.iter().map(|end| format!("'{end}'")).collect();
                    let problem = format!(
                        "unexpected end of template, expected {}{}",
                        ends.join(" or "),
                        open.unwrap_or_default()
                    );
                    return Err(Error::syntax(problem));
                }
            }
        }
    }

    /// Parses the statements of a block. The next token ends the block's first tag.
    fn body(&mut self, ends: &[&str]) -> Result<Body> {
        self.take(":");
        self.expect_token(&Token::BlockEnd)?;
        self.statements(ends)
    }

    /// Parses a body with its own scope.
    fn inner(&mut self, ends: &[&str]) -> Result<Body> {
        let soft = std::mem::replace(&mut self.soft, false);
        let body = self.body(ends);
        self.soft = soft;
        body
    }

    fn closed_inner(&mut self, end: &str) -> Result<Body> {
        let body = self.inner(&[end])?;
        self.next();
        Ok(body)
    }

    fn statement(&mut self) -> Result<Action> {
        let name = self.name()?;
        Ok(match &*name {
            "for" => self.for_statement()?,
            "if" => self.if_statement()?,
            "set" => self.set_statement()?,
            "with" => self.with_statement()?,
            "macro" => {
                let name = self.target_name()?;
                let parameters = self.signature()?;
                Action::Macro(self.macro_body(Some(name), parameters, "endmacro")?)
            }
            "call" => {
                let parameters = if self.is("(") { self.signature()? } else { Vec::new() };
                let call = self.expression()?;
                if !matches!(call.kind, Kind::Call(..)) {
                    return Err(Error::syntax("expected call"));
                }
                Action::CallBlock(call, self.macro_body(None, parameters, "endcall")?)
            }
            "filter" => {
                let filter = self.filter(None, true)?.ok_or_else(|| self.expected("a filter"))?;
                Action::FilterBlock(filter, self.closed_inner("endfilter")?)
            }
            "print" => {
                let mut values = Vec::new();
                while *self.current() != Token::BlockEnd {
                    if !values.is_empty() {
                        self.expect(",")?;
                    }
                    values.push(self.expression()?);
                }
                Action::Print(values)
            }
            "block" => self.block_statement()?,
            "autoescape" => {
                let on = self.expression()?;
                Action::AutoEscape(on, self.closed_inner("endautoescape")?)
            }
            "generation" => {
                // Jinja2 parses this as a call with a body.
                Action::Generation(self.macro_body(None, Vec::new(), "endgeneration")?)
            }
            "break" | "continue" => {
                if !self.in_loop {
                    return Err(Error::syntax(format!("{name:?} outside of a loop")));
                }
                if &*name == "break" { Action::Break } else { Action::Continue }
            }
            "extends" | "include" | "import" => self.other_template(&name)?,
            "from" => self.import_statement()?,
            _ => return Err(Error::syntax(format!("unknown tag {name:?}"))),
        })
    }

    /// A tag that needs another template.
    fn other_template(&mut self, tag: &str) -> Result<Action> {
        self.expression()?;
        match tag {
            "include" => {
                if self.is_name("ignore") && matches!(self.ahead(), Token::Name(of) if **of == *"missing") {
                    self.next();
                    self.next();
                }
                self.context_clause();
                Ok(Action::OtherTemplate("include"))
            }
            "import" => {
                if !self.take_name("as") {
                    return Err(self.expected("'as'"));
                }
                self.target_name()?;
                self.context_clause();
                Ok(Action::OtherTemplate("import"))
            }
            _ => Ok(Action::OtherTemplate("extends")),
        }
    }

    fn context_clause(&mut self) -> bool {
        let begins = self.is_name("with") || self.is_name("without");
        let found = begins && matches!(self.ahead(), Token::Name(of) if **of == *"context");
        if found {
            self.next();
            self.next();
        }
        found
    }

    fn import_statement(&mut self) -> Result<Action> {
        self.expression()?;
        if !self.take_name("import") {
            return Err(self.expected("'import'"));
        }
        let mut first = true;
        loop {
            if !std::mem::take(&mut first) {
                self.expect(",")?;
            }
            if self.context_clause() {
                break;
            }
            let name = self.target_name()?;
            if name.starts_with('_') {
                return Err(Error::syntax("names starting with an underline can not be imported"));
            }
            if self.take_name("as") {
                self.target_name()?;
            }
            if self.context_clause() || !self.is(",") {
                break;
            }
        }
        Ok(Action::OtherTemplate("from"))
    }

    fn for_statement(&mut self) -> Result<Action> {
        let target = self.target(false)?;
        if has_name(&target, "loop") {
            return Err(Error::syntax("can't assign to special loop variable in for-loop target"));
        }
        if !self.take_name("in") {
            return Err(self.expected("'in'"));
        }
        let over = self.tuple(false, false)?;
        let soft = std::mem::replace(&mut self.soft, false);
        let test = if self.take_name("if") { Some(self.expression()?) } else { None };
        self.soft = soft;
        let recursive = self.take_name("recursive");
        let in_loop = std::mem::replace(&mut self.in_loop, true);
        self.loops += 1;
        let body = self.inner(&["endfor", "else"])?;
        self.in_loop = in_loop;
        let has_else = self.is_name("else");
        self.next();
        let otherwise = if has_else { self.closed_inner("endfor")? } else { Vec::new() };
        self.loops -= 1;
        Ok(Action::For(Rc::new(For { target, over, test, recursive, body, otherwise })))
    }

    fn if_statement(&mut self) -> Result<Action> {
        let soft = std::mem::replace(&mut self.soft, true);
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let test = self.tuple(false, false)?;
            let body = self.body(&["elif", "else", "endif"])?;
            branches.push((test, body));
            if self.take_name("elif") {
                continue;
            }
            let has_else = self.is_name("else");
            self.next();
            if has_else {
                otherwise = self.body(&["endif"])?;
                self.next();
            }
            break;
        }
        self.soft = soft;
        Ok(Action::If(branches, otherwise))
    }

    fn set_statement(&mut self) -> Result<Action> {
        let target = self.target(true)?;
        if self.loops > 0 && has_name(&target, "loop") {
            return Err(Error::syntax("can't assign to special loop variable in a for-loop"));
        }
        if self.take("=") {
            return Ok(Action::Set(target, self.tuple(true, false)?));
        }
        let filter = self.filter(None, false)?;
        Ok(Action::SetBlock(target, filter, self.closed_inner("endset")?))
    }

    fn with_statement(&mut self) -> Result<Action> {
        let mut names = Vec::new();
        while *self.current() != Token::BlockEnd {
            if !names.is_empty() {
                self.expect(",")?;
            }
            let target = self.target(false)?;
            self.expect("=")?;
            names.push((target, self.expression()?));
        }
        Ok(Action::With(names, self.closed_inner("endwith")?))
    }

    fn block_statement(&mut self) -> Result<Action> {
        let name = self.name()?;
        let scoped = self.take_name("scoped");
        let required = self.take_name("required");
        if self.is("-") {
            return Err(Error::syntax("the name of a block may have no hyphens; use underscores"));
        }
        few(self.blocks.len(), "blocks")?;
        if self.blocks.iter().any(|block| block.name == name) {
            return Err(Error::syntax(format!("block {:?} defined twice", &*name)));
        }
        // Registered before its body is parsed, so that an inner block of the same name is an error.
        let place = self.blocks.len();
        let reserved = Block { name: Rc::clone(&name), scoped, required, body: Vec::new() };
        self.blocks.push(Rc::new(reserved));
        let in_loop = std::mem::replace(&mut self.in_loop, false);
        let body = self.closed_inner("endblock")?;
        self.in_loop = in_loop;
        self.take_name(&name);
        let blank = |statement: &Statement| match &statement.kind {
            Action::Text(text) => text.chars().all(super::python::is_space),
            _ => false,
        };
        if required && !body.iter().all(blank) {
            return Err(Error::syntax("required blocks can only contain comments or whitespace"));
        }
        let block = Rc::new(Block { name, scoped, required, body });
        self.blocks[place] = Rc::clone(&block);
        Ok(Action::Block(block))
    }

    fn signature(&mut self) -> Result<Vec<(Rc<str>, Option<Expr>)>> {
        let mut parameters: Vec<(Rc<str>, Option<Expr>)> = Vec::new();
        self.expect("(")?;
        while !self.is(")") {
            if !parameters.is_empty() {
                self.expect(",")?;
            }
            let name = self.target_name()?;
            let default = if self.take("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.iter().any(|(_, default)| default.is_some()) {
                return Err(Error::syntax("non-default argument follows default argument"));
            }
            few(parameters.len(), "parameters of a macro")?;
            if parameters.iter().any(|(of, _)| *of == name) {
                return Err(Error::syntax(format!("duplicate argument {:?}", &*name)));
            }
            parameters.push((name, default));
        }
        self.expect(")")?;
        Ok(parameters)
    }

    fn macro_body(
        &mut self,
        name: Option<Rc<str>>,
        parameters: Vec<(Rc<str>, Option<Expr>)>,
        end: &str,
    ) -> Result<Rc<Macro>> {
        let in_loop = std::mem::replace(&mut self.in_loop, false);
        self.reads.push([false; 3]);
        let body = self.closed_inner(end)?;
        self.in_loop = in_loop;
        let mut reads = self.reads.pop().unwrap_or_default();
        for (index, special) in SPECIAL.iter().enumerate() {
            let parameter = parameters.iter().find(|(of, _)| **of == **special);
            if let Some((_, default)) = parameter
                && reads[index]
            {
                if index > 0 {
                    reads[index] = false;
                } else if default.is_none() {
                    let problem = "an argument named caller needs a default value";
                    return Err(Error::syntax(problem));
                }
            }
        }
        let [reads_caller, reads_kwargs, reads_varargs] = reads;
        Ok(Rc::new(Macro { name, parameters, body, reads_caller, reads_kwargs, reads_varargs }))
    }

    // Targets

    fn target_name(&mut self) -> Result<Rc<str>> {
        let name = self.name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return Err(Error::syntax(format!("can't assign to {:?}", &*name)));
        }
        Ok(name)
    }

    /// A target: a name, several names, or an attribute of a namespace.
    fn target(&mut self, with_namespace: bool) -> Result<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if !targets.is_empty() {
                self.expect(",")?;
            }
            if self.is_tuple_end() {
                break;
            }
            targets.push(self.deeper(|parser| parser.one_target(with_namespace))?);
            if !self.is(",") {
                break;
            }
            is_tuple = true;
        }
        if is_tuple {
            return Ok(Target::Tuple(targets));
        }
        targets.pop().ok_or_else(|| self.expected("an expression"))
    }

    fn one_target(&mut self, with_namespace: bool) -> Result<Target> {
        if self.take("(") {
            // Jinja2 parses the names of a tuple in parentheses as expressions.
            let tuple = self.tuple(true, true)?;
            self.expect(")")?;
            return as_target(tuple);
        }
        if self.is("[") || self.is("{") {
            return Err(Error::syntax("can't assign to a list or a dictionary"));
        }
        let name = match self.current() {
            Token::Name(_) => self.target_name()?,
            Token::Text(_) | Token::Int(_) | Token::Float(_) => {
                return Err(Error::syntax("can't assign to 'const'"));
            }
            token => return Err(Error::syntax(format!("unexpected '{}'", token.said()))),
        };
        if with_namespace && self.take(".") {
            for reads in &mut self.reads {
                mark(reads, &name);
            }
            return Ok(Target::Attribute(name, self.name()?));
        }
        Ok(Target::Name(name))
    }

    // Expressions

    fn is_tuple_end(&self) -> bool {
        matches!(self.current(), Token::VariableEnd | Token::BlockEnd) || self.is(")")
    }

    fn tuple(&mut self, with_condition: bool, parentheses: bool) -> Result<Expr> {
        let line = self.line();
        let mut items: Vec<Expr> = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect(",")?;
            }
            if self.is_tuple_end() {
                break;
            }
            items.push(if with_condition { self.expression()? } else { self.deeper(Self::or)? });
            if !self.is(",") {
                break;
            }
            is_tuple = true;
        }
        if !is_tuple {
            if let Some(item) = items.pop() {
                return Ok(item);
            }
            if !parentheses {
                return Err(self.expected("an expression"));
            }
        }
        let inside = deepest(&items);
        self.expr(line, Kind::Tuple(items), inside)
    }

    fn expression(&mut self) -> Result<Expr> {
        self.deeper(Self::condition)
    }

    fn condition(&mut self) -> Result<Expr> {
        let unknown = self.unknown.len();
        let mut line = self.line();
        let mut then = self.or()?;
        while self.take_name("if") {
            let test = self.or()?;
            let otherwise = if self.take_name("else") { Some(self.expression()?) } else { None };
            for unknown in &mut self.unknown[unknown..] {
                unknown.soft = true;
            }
            let inside = then.depth.max(test.depth).max(otherwise.as_ref().map_or(0, |of| of.depth));
            let kind = Kind::Condition(Box::new(test), Box::new(then), otherwise.map(Box::new));
            then = self.expr(line, kind, inside)?;
            line = self.line();
        }
        Ok(then)
    }

    fn or(&mut self) -> Result<Expr> {
        let mut left = self.and()?;
        while self.is_name("or") {
            let line = self.line();
            self.next();
            let right = self.and()?;
            let inside = left.depth.max(right.depth);
            left = self.expr(line, Kind::Or(Box::new(left), Box::new(right)), inside)?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr> {
        let mut left = self.not()?;
        while self.is_name("and") {
            let line = self.line();
            self.next();
            let right = self.not()?;
            let inside = left.depth.max(right.depth);
            left = self.expr(line, Kind::And(Box::new(left), Box::new(right)), inside)?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr> {
        let line = self.line();
        if self.take_name("not") {
            let of = self.deeper(Self::not)?;
            let inside = of.depth;
            return self.expr(line, Kind::Not(Box::new(of)), inside);
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.sum()?;
        let mut others = Vec::new();
        loop {
            let comparison = match self.current() {
                Token::Symbol("==") => Comparison::Equal,
                Token::Symbol("!=") => Comparison::Unequal,
                Token::Symbol("<") => Comparison::Less,
                Token::Symbol("<=") => Comparison::LessOrEqual,
                Token::Symbol(">") => Comparison::Greater,
                Token::Symbol(">=") => Comparison::GreaterOrEqual,
                Token::Name(name) if **name == *"in" => Comparison::In,
                Token::Name(name)
                    if **name == *"not" && matches!(self.ahead(), Token::Name(of) if **of == *"in") =>
                {
                    self.next();
                    Comparison::NotIn
                }
                _ => break,
            };
            self.next();
            others.push((comparison, self.sum()?));
        }
        if others.is_empty() {
            return Ok(first);
        }
        let inside = others.iter().map(|(_, of)| of.depth).fold(first.depth, usize::max);
        self.expr(line, Kind::Compare(Box::new(first), others), inside)
    }

    fn binary(&mut self, operators: &[(&str, Operator)], of: fn(&mut Self) -> Result<Expr>) -> Result<Expr> {
        let mut left = of(self)?;
        while let Some((_, operator)) = operators.iter().find(|(symbol, _)| self.is(symbol)) {
            let line = self.line();
            self.next();
            let right = of(self)?;
            let inside = left.depth.max(right.depth);
            left = self.expr(line, Kind::Binary(*operator, Box::new(left), Box::new(right)), inside)?;
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Expr> {
        self.binary(&[("+", Operator::Add), ("-", Operator::Subtract)], Self::concat)
    }

    fn concat(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.product()?;
        if !self.is("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.take("~") {
            parts.push(self.product()?);
        }
        let inside = deepest(&parts);
        self.expr(line, Kind::Concat(parts), inside)
    }

    fn product(&mut self) -> Result<Expr> {
        let operators = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("//", Operator::FloorDivide),
            ("%", Operator::Modulo),
        ];
        self.binary(&operators, Self::power)
    }

    fn power(&mut self) -> Result<Expr> {
        self.binary(&[("**", Operator::Power)], |parser| parser.unary(true))
    }

    fn unary(&mut self, with_filter: bool) -> Result<Expr> {
        let line = self.line();
        let node = if self.is("-") || self.is("+") {
            let negative = self.is("-");
            self.next();
            let of = self.deeper(|parser| parser.unary(false))?;
            let inside = of.depth;
            let of = Box::new(of);
            self.expr(line, if negative { Kind::Negative(of) } else { Kind::Positive(of) }, inside)?
        } else {
            self.primary()?
        };
        let node = self.postfix(node)?;
        if with_filter { self.filters(node) } else { Ok(node) }
    }

    fn primary(&mut self) -> Result<Expr> {
        let line = self.line();
        let kind = match self.current().clone() {
            Token::Name(name) => {
                self.next();
                match &*name {
                    "true" | "True" => Kind::Const(Constant::Bool(true)),
                    "false" | "False" => Kind::Const(Constant::Bool(false)),
                    "none" | "None" => Kind::Const(Constant::None),
                    _ => {
                        for reads in &mut self.reads {
                            mark(reads, &name);
                        }
                        Kind::Name(name)
                    }
                }
            }
            Token::Text(text) => {
                self.next();
                let mut text = text.to_string();
                while let Token::Text(more) = self.current().clone() {
                    text += &more;
                    self.next();
                }
                run::bytes((text.len() + run::OBJECT) as u64)?;
                Kind::Const(Constant::Str(text.into()))
            }
            Token::Int(number) => {
                self.next();
                Kind::Const(Constant::Int(number))
            }
            Token::Float(number) => {
                self.next();
                Kind::Const(Constant::Float(number))
            }
            Token::Symbol("(") => {
                self.next();
                let tuple = self.tuple(true, true)?;
                self.expect(")")?;
                return Ok(tuple);
            }
            Token::Symbol("[") => return self.list(line),
            Token::Symbol("{") => return self.dictionary(line),
            token => return Err(Error::syntax(format!("unexpected '{}'", token.said()))),
        };
        self.expr(line, kind, 0)
    }

    fn list(&mut self, line: usize) -> Result<Expr> {
        self.next();
        let mut items = Vec::new();
        while !self.is("]") {
            if !items.is_empty() {
                self.expect(",")?;
            }
            if self.is("]") {
                break;
            }
            items.push(self.expression()?);
        }
        self.expect("]")?;
        let inside = deepest(&items);
        self.expr(line, Kind::List(items), inside)
    }

    fn dictionary(&mut self, line: usize) -> Result<Expr> {
        self.next();
        let mut items = Vec::new();
        while !self.is("}") {
            if !items.is_empty() {
                self.expect(",")?;
            }
            if self.is("}") {
                break;
            }
            let key = self.expression()?;
            self.expect(":")?;
            items.push((key, self.expression()?));
        }
        self.expect("}")?;
        let inside = items.iter().map(|(key, value)| key.depth.max(value.depth)).max().unwrap_or(0);
        self.expr(line, Kind::Dict(items), inside)
    }

    fn postfix(&mut self, mut node: Expr) -> Result<Expr> {
        loop {
            node = if self.is(".") || self.is("[") {
                self.subscript(node)?
            } else if self.is("(") {
                self.call(node)?
            } else {
                return Ok(node);
            };
        }
    }

    fn filters(&mut self, mut node: Expr) -> Result<Expr> {
        loop {
            node = if self.is("|") {
                self.filter(Some(node), false)?.ok_or_else(|| self.expected("a filter"))?
            } else if self.is_name("is") {
                self.test(node)?
            } else if self.is("(") {
                self.call(node)?
            } else {
                return Ok(node);
            };
        }
    }

    fn subscript(&mut self, node: Expr) -> Result<Expr> {
        let line = self.line();
        if self.take(".") {
            return match self.next() {
                Token::Name(name) => {
                    let inside = node.depth;
                    self.expr(line, Kind::Attribute(Box::new(node), name), inside)
                }
                Token::Int(number) => {
                    let inside = node.depth;
                    let item = self.expr(line, Kind::Const(Constant::Int(number)), 0)?;
                    self.expr(line, Kind::Item(Box::new(node), Box::new(item)), inside)
                }
                _ => Err(Error::syntax("expected name or number")),
            };
        }
        self.expect("[")?;
        let mut items = Vec::new();
        let mut slice = None;
        while !self.is("]") {
            if !items.is_empty() || slice.is_some() {
                self.expect(",")?;
            }
            if slice.is_some() {
                return Err(Error::syntax("a slice among several subscripts"));
            }
            let first = if self.is(":") { None } else { Some(self.expression()?) };
            if self.take(":") {
                if !items.is_empty() {
                    return Err(Error::syntax("a slice among several subscripts"));
                }
                let part = |parser: &mut Self| -> Result<Option<Box<Expr>>> {
                    if parser.is(":") || parser.is("]") || parser.is(",") {
                        return Ok(None);
                    }
                    Ok(Some(Box::new(parser.expression()?)))
                };
                let stop = part(self)?;
                let step = if self.take(":") { part(self)? } else { None };
                slice = Some([first.map(Box::new), stop, step]);
            } else {
                items.extend(first);
            }
        }
        self.expect("]")?;
        if let Some(slice) = slice {
            let inside = slice.iter().flatten().map(|of| of.depth).fold(node.depth, usize::max);
            return self.expr(line, Kind::Slice(Box::new(node), slice), inside);
        }
        let item = if items.len() == 1 {
            items.remove(0)
        } else {
            let inside = deepest(&items);
            self.expr(line, Kind::Tuple(items), inside)?
        };
        let inside = node.depth.max(item.depth);
        self.expr(line, Kind::Item(Box::new(node), Box::new(item)), inside)
    }

    fn call(&mut self, node: Expr) -> Result<Expr> {
        let line = self.line();
        let arguments = self.arguments()?;
        let inside = node.depth.max(arguments.depth());
        self.expr(line, Kind::Call(Box::new(node), arguments), inside)
    }

    fn arguments(&mut self) -> Result<Arguments> {
        let invalid = || Error::syntax("invalid syntax for function call expression");
        let mut arguments = Arguments::default();
        self.expect("(")?;
        let mut first = true;
        while !self.is(")") {
            if !std::mem::take(&mut first) {
                self.expect(",")?;
                if self.is(")") {
                    break;
                }
            }
            if self.take("*") {
                if arguments.list.is_some() || arguments.dict.is_some() {
                    return Err(invalid());
                }
                arguments.list = Some(Box::new(self.expression()?));
            } else if self.take("**") {
                if arguments.dict.is_some() {
                    return Err(invalid());
                }
                arguments.dict = Some(Box::new(self.expression()?));
            } else if matches!(self.current(), Token::Name(_)) && *self.ahead() == Token::Symbol("=") {
                if arguments.dict.is_some() {
                    return Err(invalid());
                }
                let name = self.name()?;
                self.expect("=")?;
                few(arguments.named.len(), "arguments of a call")?;
                if arguments.named.iter().any(|(of, _)| *of == name) {
                    return Err(Error::syntax(format!("keyword argument repeated: {}", short(&name))));
                }
                let value = self.expression()?;
                arguments.named.push((name, value));
            } else {
                if arguments.list.is_some() || arguments.dict.is_some() || !arguments.named.is_empty() {
                    return Err(invalid());
                }
                few(arguments.positional.len(), "arguments of a call")?;
                arguments.positional.push(self.expression()?);
            }
        }
        self.expect(")")?;
        Ok(arguments)
    }

    fn dotted_name(&mut self) -> Result<Rc<str>> {
        let name = self.name()?;
        if !self.is(".") {
            return Ok(name);
        }
        let mut dotted = name.to_string();
        while self.take(".") {
            dotted.push('.');
            dotted += &self.name()?;
        }
        Ok(dotted.into())
    }

    fn filter(&mut self, mut node: Option<Expr>, mut inline: bool) -> Result<Option<Expr>> {
        while inline || self.is("|") {
            if !std::mem::take(&mut inline) {
                self.next();
            }
            let line = self.line();
            let name = self.dotted_name()?;
            if !names::is_filter(&name) {
                let problem = format!("no filter named {:?}", &*name);
                self.unknown.push(Unknown { problem, line, soft: self.soft });
            }
            let arguments = if self.is("(") { self.arguments()? } else { Arguments::default() };
            let inside = arguments.depth().max(node.as_ref().map_or(0, |of| of.depth));
            node = Some(self.expr(line, Kind::Filter(node.map(Box::new), name, arguments), inside)?);
        }
        Ok(node)
    }

    fn test(&mut self, node: Expr) -> Result<Expr> {
        let line = self.line();
        self.next();
        let negated = self.take_name("not");
        let name = self.dotted_name()?;
        if !names::is_test(&name) {
            let problem = format!("no test named {:?}", &*name);
            self.unknown.push(Unknown { problem, line, soft: self.soft });
        }
        let begins_argument = match self.current() {
            Token::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Token::Text(_) | Token::Int(_) | Token::Float(_) => true,
            Token::Symbol(symbol) => matches!(*symbol, "[" | "{"),
            _ => false,
        };
        let arguments = if self.is("(") {
            self.arguments()?
        } else if begins_argument {
            if self.is_name("is") {
                return Err(Error::syntax("you cannot chain multiple tests with is"));
            }
            let argument = self.primary()?;
            let argument = self.postfix(argument)?;
            Arguments { positional: vec![argument], ..Arguments::default() }
        } else {
            Arguments::default()
        };
        let inside = node.depth.max(arguments.depth());
        let test = self.expr(line, Kind::Test(Box::new(node), name, arguments), inside)?;
        if negated {
            let inside = test.depth;
            return self.expr(line, Kind::Not(Box::new(test)), inside);
        }
        Ok(test)
    }
}

/// The variables that a macro has only if its body reads them.
const SPECIAL: [&str; 3] = ["caller", "kwargs", "varargs"];

fn mark(reads: &mut [bool; 3], name: &str) {
    if let Some(index) = SPECIAL.iter().position(|special| *special == name) {
        reads[index] = true;
    }
}

impl Arguments {
    fn depth(&self) -> usize {
        let named = self.named.iter().map(|(_, of)| of.depth).max().unwrap_or(0);
        let dynamic = [&self.list, &self.dict].into_iter().flatten().map(|of| of.depth).max().unwrap_or(0);
        deepest(&self.positional).max(named).max(dynamic)
    }
}

/// An error if there is one name too many.
fn few(count: usize, what: &str) -> Result<()> {
    if count >= MOST_NAMES {
        return Err(Error::limit(format!("it has more than {MOST_NAMES} {what}")));
    }
    Ok(())
}

fn deepest(items: &[Expr]) -> usize {
    items.iter().map(|item| item.depth).max().unwrap_or(0)
}

fn has_name(target: &Target, name: &str) -> bool {
    match target {
        Target::Name(of) => **of == *name,
        Target::Attribute(..) => false,
        Target::Tuple(targets) => targets.iter().any(|target| has_name(target, name)),
    }
}

/// Converts an expression in parentheses into a target.
fn as_target(expr: Expr) -> Result<Target> {
    match expr.kind {
        Kind::Name(name) => Ok(Target::Name(name)),
        Kind::Tuple(items) => Ok(Target::Tuple(items.into_iter().map(as_target).collect::<Result<_>>()?)),
        _ => Err(Error::syntax("can't assign to this expression").at(expr.line)),
    }
}
