//! Templates whose text would double and double again.
//!
//! The engine counts instructions, not bytes: `{% set ns.x = ns.x ~ ns.x %}` forty times over is some hundred
//! instructions and a terabyte. So the template is followed here with sizes in place of values, each loop some
//! sixty times: text that a conversation makes longer grows with a small power of the number of messages, text
//! that is made of itself grows past every bound. What grows by detours slow enough is not found out; what it
//! puts out is still bounded, and a product is never of more than a line of text.
//!
//! A namespace that is put into itself is refused on the way: the engine would write it out for ever. Since templates
//! use what is in a namespace, and never the whole, no other use of its name is let pass.

use std::collections::{HashMap, HashSet};

use minijinja::machinery::ast::{BinOpKind, Call, CallArg, Expr, Macro, Stmt};
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;

/// How often a loop is followed.
const ROUNDS: usize = 64;
/// Sixty-four messages, each put together with each and all again, stay below.
const LIMIT: f64 = 1e12;
/// Far beyond the widest line that someone draws with `'-' * n`; the engine would make 100 MB of one.
const PRODUCT_LIMIT: f64 = 1e3;
/// A number that is read out of a text, or written out: larger ones are no different.
const LARGE: f64 = 1e6;
/// Statements to follow; loops within loops within loops are cut short at that.
const STEPS: usize = 30_000;

/// What following a template found.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// How it makes text of itself without bound, if it does.
    pub problem: Option<String>,
    /// Bytes of the longest text that stands between its tags.
    pub longest_text: usize,
}

/// Follows a template. What does not parse is refused with a better message elsewhere.
pub(super) fn growth(source: &str, syntax: &SyntaxConfig) -> Growth {
    let Ok(Stmt::Template(template)) = parse(source, "chat_template", syntax.clone()) else {
        return Growth::default();
    };
    let mut sizes = Sizes::default();
    sizes.statements(&template.children);
    Growth { problem: sizes.found, longest_text: sizes.longest_text }
}

/// How much longer than the parts of a conversation texts are.
#[derive(Default)]
struct Sizes<'a> {
    /// By variable, and by `namespace.attribute`.
    of: HashMap<String, f64>,
    macros: HashMap<&'a str, &'a Macro<'a>>,
    /// Variables that are namespaces.
    namespaces: HashSet<&'a str>,
    /// Macros being followed, with the sizes of their parameters.
    following: Vec<(&'a str, Vec<f64>)>,
    steps: usize,
    /// What is too large.
    found: Option<String>,
    longest_text: usize,
}

impl<'a> Sizes<'a> {
    fn get(&self, name: &str) -> f64 {
        self.of.get(name).copied().unwrap_or(1.0)
    }

    fn set(&mut self, name: String, size: f64) {
        if size > LIMIT {
            self.find(|| format!("`{name}` is made of itself more than once, and grows without bound"));
        }
        self.of.insert(name, size);
    }

    /// Forgets what a scope has set but for attributes of namespaces, which outlive it.
    fn leave(&mut self, before: &HashMap<String, f64>) {
        self.of.retain(|name, _| name.contains('.') || before.contains_key(name));
        for (name, size) in before.iter().filter(|(name, _)| !name.contains('.')) {
            self.of.insert(name.clone(), *size);
        }
    }

    fn assign(&mut self, target: &Expr, size: f64) {
        match target {
            Expr::Var(variable) => self.set(variable.id.to_owned(), size),
            Expr::GetAttr(_) => path(target).into_iter().for_each(|path| self.set(path, size)),
            Expr::List(list) => list.items.iter().for_each(|item| self.assign(item, size)),
            Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.assign(item, size)),
            _ => {}
        }
    }

    /// The size of what statements put out.
    fn statements(&mut self, statements: &'a [Stmt<'a>]) -> f64 {
        self.steps += statements.len();
        statements.iter().map(|statement| self.statement(statement)).sum()
    }

    fn statement(&mut self, statement: &'a Stmt<'a>) -> f64 {
        match statement {
            Stmt::EmitExpr(emit) => self.expression(&emit.expr),
            Stmt::EmitRaw(text) => {
                self.longest_text = self.longest_text.max(text.raw.len());
                1.0
            }
            Stmt::ForLoop(repeated) => {
                let items = self.expression(&repeated.iter);
                self.look_at(&repeated.filter_expr);
                let otherwise = self.statements(&repeated.else_body);
                let mut size = 0.0;
                for round in 1..=ROUNDS {
                    let before = self.of.clone();
                    self.assign(&repeated.target, items);
                    size += self.statements(&repeated.body);
                    self.leave(&before);
                    if self.of == before || self.found.is_some() || self.steps > STEPS {
                        size *= (ROUNDS / round) as f64;
                        break;
                    }
                }
                size + otherwise
            }
            Stmt::IfCond(condition) => {
                self.expression(&condition.expr);
                let before = self.of.clone();
                let taken = self.statements(&condition.true_body);
                let after = std::mem::replace(&mut self.of, before);
                let other = self.statements(&condition.false_body);
                for (name, size) in after {
                    let merged = self.of.entry(name).or_insert(size);
                    *merged = merged.max(size);
                }
                taken.max(other)
            }
            Stmt::WithBlock(block) => {
                for (target, value) in &block.assignments {
                    let size = self.expression(value);
                    self.assign(target, size);
                }
                self.statements(&block.body)
            }
            Stmt::Set(set) => {
                match (&set.target, &set.expr) {
                    (Expr::Var(name), Expr::Call(call)) if is_variable(&call.expr, "namespace") => {
                        self.namespace(name.id, &call.args);
                        self.namespaces.insert(name.id);
                    }
                    _ => {
                        if let Expr::Var(name) = &set.target {
                            self.namespaces.remove(name.id);
                        }
                        let size = self.expression(&set.expr);
                        self.assign(&set.target, size);
                    }
                }
                0.0
            }
            Stmt::SetBlock(block) => {
                let size = self.statements(&block.body);
                let size = block.filter.as_ref().map_or(size, |filter| self.filtered(filter, size));
                self.assign(&block.target, size);
                0.0
            }
            Stmt::FilterBlock(block) => {
                let size = self.statements(&block.body);
                self.filtered(&block.filter, size)
            }
            Stmt::AutoEscape(block) => self.statements(&block.body),
            Stmt::Macro(declared) => {
                self.macros.insert(declared.name, &**declared);
                // The engine works out products of constants even where nobody calls for them.
                let before = self.of.clone();
                self.statements(&declared.body);
                self.of = before;
                0.0
            }
            Stmt::CallBlock(block) => self.statements(&block.macro_decl.body) + self.call(&block.call),
            Stmt::Do(done) => self.call(&done.call),
            _ => 1.0,
        }
    }

    /// A new namespace, in place of what the name stood for.
    fn namespace(&mut self, name: &str, attributes: &'a [CallArg<'a>]) {
        let sizes = self.arguments(attributes);
        let prefix = format!("{name}.");
        self.of.retain(|path, _| !path.starts_with(&prefix));
        for (attribute, size) in attributes.iter().zip(sizes) {
            if let CallArg::Kwarg(attribute, _) = attribute {
                self.set(format!("{prefix}{attribute}"), size);
            }
        }
    }

    /// The size of what a macro puts out. One that calls itself ends where its data end, and takes an
    /// instruction each time; but what it hands on may grow.
    fn expand(&mut self, called: &'a Macro<'a>, arguments: &'a [CallArg<'a>]) -> f64 {
        let sizes: Vec<f64> = self.parameters(called, arguments);
        if let Some((_, known)) = self.following.iter_mut().find(|(name, _)| *name == called.name) {
            known.iter_mut().zip(sizes).for_each(|(known, size)| *known = known.max(size));
            return 1.0;
        }
        self.following.push((called.name, sizes));
        let mut size = 0.0;
        for _ in 0..ROUNDS {
            let before = self.of.clone();
            let sizes = self.following.last().map(|(_, sizes)| sizes.clone()).unwrap_or_default();
            for (parameter, size) in called.args.iter().zip(&sizes) {
                self.assign(parameter, *size);
            }
            size = self.statements(&called.body);
            self.leave(&before);
            let hands_on_the_same = self.following.last().is_none_or(|(_, handed)| *handed == sizes);
            if hands_on_the_same || self.found.is_some() || self.steps > STEPS {
                break;
            }
        }
        self.following.pop();
        size
    }

    /// The sizes of a macro's parameters in a call.
    fn parameters(&mut self, called: &'a Macro<'a>, arguments: &'a [CallArg<'a>]) -> Vec<f64> {
        let sizes = self.arguments(arguments);
        let mut parameters = vec![1.0; called.args.len()];
        for (at, (argument, size)) in arguments.iter().zip(sizes).enumerate() {
            let named = |name: &str| called.args.iter().position(|parameter| is_variable(parameter, name));
            let parameter = if let CallArg::Kwarg(name, _) = argument { named(name) } else { Some(at) };
            parameter
                .and_then(|at| parameters.get_mut(at))
                .into_iter()
                .for_each(|parameter| *parameter = size);
        }
        parameters
    }

    fn expression(&mut self, expression: &'a Expr<'a>) -> f64 {
        match expression {
            Expr::Var(variable) => {
                if self.namespaces.contains(variable.id) {
                    self.find(|| {
                        format!("`{}` is used as a whole; a namespace has uses for its parts", variable.id)
                    });
                }
                self.get(variable.id)
            }
            Expr::Const(constant) => match f64::try_from(constant.value.clone()) {
                Ok(number) => number.abs().clamp(1.0, LARGE),
                Err(_) => 1.0,
            },
            Expr::Slice(slice) => {
                [&slice.start, &slice.stop, &slice.step].into_iter().for_each(|bound| self.look_at(bound));
                self.expression(&slice.expr)
            }
            Expr::UnaryOp(operation) => self.expression(&operation.expr),
            Expr::Test(test) => {
                self.arguments(&test.args);
                self.expression(&test.expr);
                1.0
            }
            Expr::Compare(compared) => {
                self.expression(&compared.expr);
                compared.ops.iter().for_each(|compared| {
                    self.expression(&compared.expr);
                });
                1.0
            }
            Expr::BinOp(operation) => {
                let (left, right) = (self.expression(&operation.left), self.expression(&operation.right));
                match operation.op {
                    BinOpKind::Add | BinOpKind::Concat | BinOpKind::Rem => left + right,
                    BinOpKind::Mul => self.product(left * right),
                    BinOpKind::ScAnd | BinOpKind::ScOr => left.max(right),
                    _ => 1.0,
                }
            }
            Expr::IfExpr(either) => {
                self.expression(&either.test_expr);
                let other = either.false_expr.as_ref().map_or(1.0, |other| self.expression(other));
                self.expression(&either.true_expr).max(other)
            }
            Expr::Filter(filter) => {
                let base = filter.expr.as_ref().map_or(1.0, |base| self.expression(base));
                self.applied(filter.name, (filter.expr.as_ref(), base), &filter.args)
            }
            Expr::GetAttr(attribute) => match (&attribute.expr, path(expression)) {
                (Expr::Var(name), Some(path)) => {
                    self.of.get(&path).copied().unwrap_or_else(|| self.get(name.id))
                }
                (other, _) => self.expression(other),
            },
            Expr::GetItem(item) => {
                self.expression(&item.subscript_expr);
                self.expression(&item.expr)
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => list.items.iter().map(|item| self.expression(item)).sum(),
            Expr::Tuple(tuple) => tuple.items.iter().map(|item| self.expression(item)).sum(),
            Expr::Map(map) => map.keys.iter().chain(&map.values).map(|part| self.expression(part)).sum(),
        }
    }

    fn product(&mut self, size: f64) -> f64 {
        if size > PRODUCT_LIMIT {
            self.find(|| "a product with `*` may have any size".to_owned());
        }
        size
    }

    fn find(&mut self, reason: impl FnOnce() -> String) {
        self.found.get_or_insert_with(reason);
    }

    fn call(&mut self, call: &'a Call<'a>) -> f64 {
        match &call.expr {
            Expr::GetAttr(method) => {
                let base = self.expression(&method.expr);
                self.applied(method.name, (Some(&method.expr), base), &call.args)
            }
            Expr::Var(function) if function.id == "raise_exception" => 0.0,
            Expr::Var(function) if function.id == "namespace" => {
                self.find(|| "`namespace()` is known in `{% set NAME = namespace() %}` alone".to_owned());
                1.0
            }
            Expr::Var(function) => match self.macros.get(function.id).copied() {
                Some(called) => self.expand(called, &call.args),
                None => self.arguments(&call.args).iter().sum::<f64>().max(1.0),
            },
            other => {
                self.arguments(&call.args);
                self.expression(other)
            }
        }
    }

    /// A filter over what a block puts out.
    fn filtered(&mut self, filter: &'a Expr<'a>, size: f64) -> f64 {
        let Expr::Filter(filter) = filter else { return size };
        let size = filter.expr.as_ref().map_or(size, |inner| self.filtered(inner, size));
        self.applied(filter.name, (filter.expr.as_ref(), size), &filter.args)
    }

    /// A part whose size is of no interest, but perhaps what it is made of.
    fn look_at(&mut self, part: &'a Option<Expr<'a>>) {
        part.iter().for_each(|part| {
            self.expression(part);
        });
    }

    /// A filter or method: most keep the size, some put arguments between or instead of parts. Text that is made of text
    /// by such a one may have its argument for each character.
    fn applied(
        &mut self,
        name: &str,
        (expression, base): (Option<&Expr>, f64),
        arguments: &'a [CallArg<'a>],
    ) -> f64 {
        let sizes = self.arguments(arguments);
        let is_made = |argument: &CallArg| {
            !matches!(argument, CallArg::Pos(Expr::Const(_)) | CallArg::Kwarg(_, Expr::Const(_)))
        };
        let made: Vec<f64> = arguments
            .iter()
            .zip(&sizes)
            .filter_map(|(argument, size)| is_made(argument).then_some(*size))
            .collect();
        let first = arguments.first().and_then(positional);
        match name {
            // Numbers: of what was counted, or of what stands in a text.
            "length" | "count" | "find" | "rfind" | "round" | "abs" => base,
            "int" | "float" => LARGE,
            "startswith" | "endswith" => 1.0,
            "replace" => match (first.and_then(text), arguments.get(1).and_then(positional).and_then(text)) {
                (Some(""), Some(new)) => base * (1 + new.len()) as f64,
                (Some(old), Some(new)) => base * (new.len() as f64 / old.len() as f64).max(1.0),
                _ => base * (1.0 + made.iter().sum::<f64>()),
            },
            // As a filter what is joined stands in front, as a method in the parentheses.
            "join" => match (expression.and_then(text), first) {
                (Some(between), Some(parts)) => joined(parts, sizes[0], between.len() as f64),
                (None, between) => {
                    let between = between.and_then(text).map(|between| between.len() as f64);
                    let between = between.unwrap_or_else(|| made.iter().sum());
                    expression.map_or(base + between, |parts| joined(parts, base, between))
                }
                (Some(_), None) => base,
            },
            // Of a text they make its characters, which are written `'a', ` where that becomes a text again.
            "list" | "batch" | "slice" | "chunks" | "unique" | "sort" | "map" | "select" | "reject"
            | "selectattr" | "rejectattr" | "groupby" | "zip" => 8.0 * base,
            // A quotation mark becomes two characters, and these four the next time.
            "tojson" => 2.0 * base,
            "format" => base + made.iter().sum::<f64>(),
            "default" | "d" | "get" => made.into_iter().fold(base, f64::max),
            _ => base,
        }
    }

    fn arguments(&mut self, arguments: &'a [CallArg<'a>]) -> Vec<f64> {
        let size = |argument: &'a CallArg<'a>| match argument {
            CallArg::Pos(value) | CallArg::PosSplat(value) | CallArg::KwargSplat(value) => {
                self.expression(value)
            }
            CallArg::Kwarg(_, value) => self.expression(value),
        };
        arguments.iter().map(size).collect()
    }
}

/// The size of parts put together: those of a list that is written out are few, those of anything else may be characters.
fn joined(parts: &Expr, size: f64, between: f64) -> f64 {
    match parts {
        Expr::List(list) => size + between * list.items.len() as f64,
        _ => size * (1.0 + between),
    }
}

fn positional<'a>(argument: &'a CallArg<'a>) -> Option<&'a Expr<'a>> {
    if let CallArg::Pos(expression) = argument { Some(expression) } else { None }
}

/// A text that is written out.
fn text<'a>(expression: &'a Expr<'a>) -> Option<&'a str> {
    if let Expr::Const(constant) = expression { constant.value.as_str() } else { None }
}

fn is_variable(expression: &Expr, name: &str) -> bool {
    matches!(expression, Expr::Var(variable) if variable.id == name)
}

/// `namespace.attribute`.
fn path(expression: &Expr) -> Option<String> {
    let Expr::GetAttr(attribute) = expression else { return None };
    let Expr::Var(namespace) = &attribute.expr else { return None };
    Some(format!("{}.{}", namespace.id, attribute.name))
}
