//! llama.cpp's own log: never on stderr; to a sink if one is set, and kept for the error of a failed call.
//!
//! Unsafe: one C callback. llama.cpp hands it a null-terminated text that lives for the call.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::sync::{Arc, RwLock};

use llama_cpp_sys_2 as sys;

/// How serious a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For people who work on the engine.
    Debug,
    /// What it does.
    Notice,
    /// Something is odd.
    Warning,
    /// Something failed.
    Error,
}

/// Takes the lines of llama.cpp's log, from any thread.
pub type Sink = Arc<dyn Fn(Level, &str) + Send + Sync>;

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

/// Most lines one call keeps; a load of a large model logs a few hundred.
const KEPT_LINES: usize = 2000;

thread_local! {
    static KEPT: RefCell<Option<Vec<(Level, String)>>> = const { RefCell::new(None) };
    static LAST: RefCell<Level> = const { RefCell::new(Level::Debug) };
}

/// Sends llama.cpp's log there from now on.
pub fn set_sink(sink: Option<Sink>) {
    if let Ok(mut current) = SINK.write() {
        *current = sink;
    }
}

/// Runs a call and returns what llama.cpp logged on this thread meanwhile.
pub(super) fn keep<T>(call: impl FnOnce() -> T) -> (T, Vec<(Level, String)>) {
    KEPT.with_borrow_mut(|kept| *kept = Some(Vec::new()));
    let result = call();
    (result, KEPT.with_borrow_mut(Option::take).unwrap_or_default())
}

/// The reason of a failure, from what was logged: its errors in order, or its last line.
pub(super) fn reason(lines: &[(Level, String)]) -> String {
    let errors: Vec<&str> =
        lines.iter().filter(|(level, _)| *level == Level::Error).map(|(_, line)| line.trim()).collect();
    if !errors.is_empty() {
        return errors.join("; ");
    }
    lines.last().map_or_else(|| "no reason was given".to_owned(), |(_, line)| line.trim().to_owned())
}

/// Takes the log over; called once, before anything else of llama.cpp.
pub(super) fn install() {
    // SAFETY: the callback is a plain function that lives as long as the program and takes no user data.
    unsafe { sys::llama_log_set(Some(take), std::ptr::null_mut()) };
}

unsafe extern "C" fn take(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a null-terminated text, valid during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // A panic must not unwind into C.
    let _ = std::panic::catch_unwind(|| line(level, &text));
}

fn line(level: sys::ggml_log_level, text: &str) {
    let continues = level == sys::GGML_LOG_LEVEL_CONT;
    let level = match level {
        sys::GGML_LOG_LEVEL_ERROR => Level::Error,
        sys::GGML_LOG_LEVEL_WARN => Level::Warning,
        sys::GGML_LOG_LEVEL_INFO | sys::GGML_LOG_LEVEL_NONE => Level::Notice,
        sys::GGML_LOG_LEVEL_CONT => LAST.with_borrow(|last| *last),
        _ => Level::Debug,
    };
    LAST.with_borrow_mut(|last| *last = level);
    // What is only for people who work on the engine is a line for each layer and more: it would crowd out the sizes.
    KEPT.with_borrow_mut(|kept| match kept {
        _ if level == Level::Debug => {}
        Some(lines) if continues => {
            if let Some((_, line)) = lines.last_mut() {
                line.push_str(text);
            }
        }
        Some(lines) if lines.len() < KEPT_LINES => lines.push((level, text.to_owned())),
        _ => {}
    });
    let sink = SINK.read().ok().and_then(|sink| sink.clone());
    if let Some(sink) = sink {
        sink(level, text.trim_end_matches('\n'));
    }
}
