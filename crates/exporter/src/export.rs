//! The export from end to end.

use formats::Observer;

use crate::{Event, Receipt, Request, Result, Verifier};

/// Merges, quantises, writes and verifies; returns what `receipt.json` records.
///
/// Never leaves a file under the final name that did not pass: until then everything is in a `*.tmp` beside it,
/// which the next export of the same name removes.
///
/// # Errors
/// Everything in [`crate::Error`]; nothing has the final name then, and an older export is left as it was.
pub fn export(
    _request: &Request,
    _verifier: &dyn Verifier,
    _observer: &mut dyn Observer<Event>,
) -> Result<Receipt> {
    todo!()
}
