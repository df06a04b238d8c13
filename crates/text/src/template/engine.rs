//! minijinja, set up to render as transformers' jinja2 does, within bounds.

use std::cell::Cell;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Rest, Value, ValueOrKwargs};
use minijinja::{Environment, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::clock::strftime;
use super::growth::growth;
use super::python::{json_of, str_of};
use crate::{Error, Result};

/// The longest published template has some 20 KB.
const SOURCE_LIMIT_BYTES: usize = 512 << 10;
/// Far beyond any context.
const OUTPUT_LIMIT_BYTES: usize = 32 << 20;
/// Instructions of one rendering; a message takes some hundreds.
const FUEL: u64 = 20_000_000;
/// What all `{{ }}` of one rendering put out together, those within macros and blocks that are kept in a variable, too.
const EMITTED_LIMIT_BYTES: usize = 4 * OUTPUT_LIMIT_BYTES;
/// What the text between tags may come to: each instruction puts out the longest.
const TEXT_LIMIT_BYTES: u64 = 2 << 30;
/// The widest field of a `format`.
const FIELD_LIMIT_DIGITS: usize = 3;
/// The widest indentation that makes sense.
const INDENT_LIMIT: usize = 64;

const NAME: &str = "chat_template";

/// A compiled template.
#[derive(Debug)]
pub(super) struct Engine {
    environment: Environment<'static>,
    now: Arc<AtomicI64>,
}

impl Engine {
    pub fn new(source: String) -> Result<Engine> {
        if source.len() > SOURCE_LIMIT_BYTES {
            let reason =
                format!("its source has {} bytes; more than {SOURCE_LIMIT_BYTES} are not read", source.len());
            return Err(Error::Template { reason });
        }
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Arc::new(AtomicI64::new(since_1970.as_secs() as i64));
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        let mut syntax = minijinja::syntax::SyntaxConfig::builder();
        let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        let growth = growth(&source, &syntax);
        if let Some(reason) = growth.problem {
            return Err(Error::Template { reason });
        }
        environment.set_fuel(Some(FUEL.min(TEXT_LIMIT_BYTES / growth.longest_text.max(1) as u64)));
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(method);
        environment.set_formatter(|out, _, value| {
            let text = str_of(value);
            count_emitted(text.len())?;
            out.write_str(&text).map_err(minijinja::Error::from)
        });
        environment.add_filter("format", format);
        environment.add_filter("tojson", tojson);
        environment.add_filter("indent", indent);
        // None cannot be iterated over in Python; here it can, over nothing.
        environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_filter("string", |value: &Value| str_of(value));
        environment.add_filter("__generation", |text: String, open: Value, close: Value| {
            format!("{}{text}{}", str_of(&open), str_of(&close))
        });
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, RAISED.to_owned() + &message))
        });
        let clock = Arc::clone(&now);
        environment.add_function("strftime_now", move |format: String| {
            strftime(clock.load(Ordering::Relaxed), &format)
        });
        environment.add_template_owned(NAME, source).map_err(failed)?;
        Ok(Engine { environment, now })
    }

    pub fn set_now(&self, unix_seconds: i64) {
        self.now.store(unix_seconds, Ordering::Relaxed);
    }

    pub fn now(&self) -> i64 {
        self.now.load(Ordering::Relaxed)
    }

    pub fn render<'a>(&self, variables: impl IntoIterator<Item = (&'a str, Value)>) -> Result<String> {
        let mut output = Bounded(Vec::new());
        EMITTED_BYTES.set(0);
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let rendered = template.render_captured_to(Value::from_pairs(variables), &mut output).map(|_| ());
        match rendered {
            Err(_) if output.0.len() > OUTPUT_LIMIT_BYTES => {
                Err(Error::OutputTooLong { limit_bytes: OUTPUT_LIMIT_BYTES })
            }
            Err(error) => Err(failed(error)),
            Ok(()) => {
                String::from_utf8(output.0).map_err(|error| Error::Template { reason: error.to_string() })
            }
        }
    }
}

thread_local! {
    /// What the rendering on this thread has put out.
    static EMITTED_BYTES: Cell<usize> = const { Cell::new(0) };
}

fn count_emitted(bytes: usize) -> Result<(), minijinja::Error> {
    let emitted = EMITTED_BYTES.get().saturating_add(bytes);
    EMITTED_BYTES.set(emitted);
    if emitted <= EMITTED_LIMIT_BYTES {
        return Ok(());
    }
    let message = format!("it puts out more than {} MiB", EMITTED_LIMIT_BYTES >> 20);
    Err(minijinja::Error::new(ErrorKind::OutOfFuel, message))
}

/// minijinja's `format`, which takes fields of any width.
fn format(
    state: &mut State,
    text: &Value,
    arguments: Rest<ValueOrKwargs>,
) -> Result<Value, minijinja::Error> {
    let digits = |text: &str| text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    if text.as_str().is_some_and(|text| digits(text) > FIELD_LIMIT_DIGITS || text.contains('*')) {
        let message = "`format` with fields of such a width is not known here";
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
    }
    minijinja::filters::format(state, text, arguments)
}

/// Marks the messages of `raise_exception`, which need no line of the template.
const RAISED: &str = "raised: ";

fn failed(error: minijinja::Error) -> Error {
    let raised = error.detail().and_then(|detail| detail.strip_prefix(RAISED));
    let reason = match (raised, error.line()) {
        (Some(message), _) => message.to_owned(),
        (None, Some(line)) => format!("line {line}: {}{}", error.kind(), detail(&error)),
        (None, None) => format!("{}{}", error.kind(), detail(&error)),
    };
    Error::Template { reason }
}

fn detail(error: &minijinja::Error) -> String {
    error.detail().map(|detail| format!(", {detail}")).unwrap_or_default()
}

/// Output up to the limit; the first byte beyond it stays, as the sign.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = (OUTPUT_LIMIT_BYTES + 1).saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room {
            return Err(std::io::Error::other("the output is too long"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `tojson` of transformers: `json.dumps` with `ensure_ascii=False` and, unless said otherwise, no indent.
fn tojson(value: &Value, arguments: Kwargs) -> Result<Value, minijinja::Error> {
    let indent = bounded_indent(arguments.get::<Option<usize>>("indent")?)?;
    let _ensure_ascii = arguments.get::<Option<bool>>("ensure_ascii")?;
    arguments.assert_all_used()?;
    Ok(Value::from(json_of(value, indent)))
}

/// minijinja's `indent`, which takes any width, two billion too.
fn indent(
    text: minijinja::value::StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    arguments: Kwargs,
) -> Result<Value, minijinja::Error> {
    bounded_indent(width)?;
    bounded_indent(arguments.get::<Option<usize>>("width")?)?;
    minijinja::filters::indent(text, width, first, blank, arguments)
}

fn bounded_indent(width: Option<usize>) -> Result<Option<usize>, minijinja::Error> {
    match width {
        Some(width) if width > INDENT_LIMIT => {
            let message = format!("an indentation of {width} is more than {INDENT_LIMIT}");
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        }
        width => Ok(width),
    }
}

/// Python's methods of strings, lists and dictionaries, but `format`, which can be told any width.
fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, minijinja::Error> {
    if name == "format" && value.as_str().is_some_and(|text| text.contains(':')) {
        let message = "`format` with a format specification is not known here";
        return Err(minijinja::Error::new(ErrorKind::UnknownMethod, message));
    }
    unknown_method_callback(state, value, name, arguments)
}
