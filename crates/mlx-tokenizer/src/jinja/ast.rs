//! The syntax tree of a template.

use std::rc::Rc;

/// An expression and its line.
#[derive(Debug)]
pub(super) struct Expr {
    pub(super) line: usize,
    /// The depth of nested expressions.
    pub(super) depth: usize,
    /// Whether it reads no variable and calls nothing. Jinja2 computes such an expression when it compiles a
    /// template.
    pub(super) constant: bool,
    pub(super) kind: Kind,
}

impl Expr {
    pub(super) fn new(line: usize, depth: usize, kind: Kind) -> Self {
        let all = |items: &[Self]| items.iter().all(|of| of.constant);
        let boxed = |of: &Option<Box<Self>>| of.as_ref().is_none_or(|of| of.constant);
        let arguments = |of: &Arguments| {
            all(&of.positional)
                && of.named.iter().all(|(_, of)| of.constant)
                && of.list.is_none()
                && of.dict.is_none()
        };
        let constant = match &kind {
            Kind::Const(_) => true,
            Kind::Name(_) | Kind::Call(..) => false,
            Kind::Tuple(items) | Kind::List(items) | Kind::Concat(items) => all(items),
            Kind::Dict(items) => items.iter().all(|(key, value)| key.constant && value.constant),
            Kind::Attribute(of, _) | Kind::Not(of) | Kind::Negative(of) | Kind::Positive(of) => of.constant,
            Kind::Item(a, b) | Kind::Binary(_, a, b) | Kind::And(a, b) | Kind::Or(a, b) => {
                a.constant && b.constant
            }
            Kind::Slice(of, [start, stop, step]) => of.constant && boxed(start) && boxed(stop) && boxed(step),
            Kind::Filter(of, _, args) => boxed(of) && arguments(args),
            Kind::Test(of, _, args) => of.constant && arguments(args),
            Kind::Compare(first, others) => first.constant && others.iter().all(|(_, of)| of.constant),
            Kind::Condition(test, then, otherwise) => test.constant && then.constant && boxed(otherwise),
        };
        Self { line, depth, constant, kind }
    }
}

/// A value that is written in the template.
#[derive(Debug)]
pub(super) enum Constant {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<str>),
}

#[derive(Debug)]
pub(super) enum Kind {
    Const(Constant),
    Name(Rc<str>),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Box<Expr>, Rc<str>),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Expr>, Arguments),
    /// A filter. Without an expression it filters the text of a block.
    Filter(Option<Box<Expr>>, Rc<str>, Arguments),
    Test(Box<Expr>, Rc<str>, Arguments),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    /// Condition, value if true, value if false.
    Condition(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
}

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(Rc<str>, Expr)>,
    /// `*list`.
    pub(super) list: Option<Box<Expr>>,
    /// `**dictionary`.
    pub(super) dict: Option<Box<Expr>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

/// The target of an assignment.
#[derive(Debug)]
pub(super) enum Target {
    Name(Rc<str>),
    /// An attribute of a namespace.
    Attribute(Rc<str>, Rc<str>),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) struct Statement {
    pub(super) line: usize,
    pub(super) kind: Action,
}

pub(super) type Body = Vec<Statement>;

#[derive(Debug)]
pub(super) enum Action {
    Text(Rc<str>),
    Print(Vec<Expr>),
    /// The conditions with their bodies, and the body of `else`.
    If(Vec<(Expr, Body)>, Body),
    For(Rc<For>),
    Set(Target, Expr),
    /// A `set` block. The filter, if there is one, is a chain of filters without an expression.
    SetBlock(Target, Option<Expr>, Body),
    With(Vec<(Target, Expr)>, Body),
    Macro(Rc<Macro>),
    /// The call, and the macro that it gets as `caller`.
    CallBlock(Expr, Rc<Macro>),
    FilterBlock(Expr, Body),
    Block(Rc<Block>),
    /// A `generation` block: text that the model wrote.
    Generation(Rc<Macro>),
    AutoEscape(Expr, Body),
    Break,
    Continue,
    /// A tag that needs another template. There are no other templates.
    OtherTemplate(&'static str),
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) over: Expr,
    pub(super) test: Option<Expr>,
    pub(super) recursive: bool,
    pub(super) body: Body,
    pub(super) otherwise: Body,
}

#[derive(Debug)]
pub(crate) struct Macro {
    /// The name; `None` for the body of a call.
    pub(super) name: Option<Rc<str>>,
    pub(super) parameters: Vec<(Rc<str>, Option<Expr>)>,
    pub(super) body: Body,
    pub(super) reads_caller: bool,
    pub(super) reads_kwargs: bool,
    pub(super) reads_varargs: bool,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) name: Rc<str>,
    pub(super) scoped: bool,
    pub(super) required: bool,
    pub(super) body: Body,
}

/// A whole template.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) body: Body,
    pub(super) blocks: Vec<Rc<Block>>,
}
