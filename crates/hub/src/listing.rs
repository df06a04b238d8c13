//! The files of a repository, as the hub lists them.

use std::io::Read;

use serde::Deserialize;

use crate::client::{Client, Trouble, protocol};
use crate::model_id::is_harmless;
use crate::{Error, Result};

/// Some ten thousand files; the largest of models have some hundred.
const MAX_BYTES: u64 = 8 << 20;

/// A revision's commit and files.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) files: Vec<String>,
}

#[derive(Deserialize)]
struct Body {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Asks the hub for a revision.
///
/// # Errors
/// [`Error::HostileName`] for a file that would not lie in its folder; what the hub refuses.
pub(crate) fn list(client: &mut Client<'_>) -> Result<Listing> {
    let url = client.listing_url();
    let body = client.patiently(&url, |client| read(client, &url))?;
    let body: Body = serde_json::from_slice(&body).map_err(|error| protocol(&url, error.to_string()))?;
    if !is_commit(&body.sha) {
        return Err(protocol(&url, format!("`{}` is no commit", body.sha)));
    }
    let files: Vec<String> = body.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    if let Some(name) = files.iter().find(|name| !is_harmless(name)) {
        let repository = client.id.repository().to_owned();
        return Err(Error::HostileName { repository, name: name.clone() });
    }
    Ok(Listing { commit: body.sha, files })
}

/// Forty hexadecimal digits.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn read(client: &Client<'_>, url: &str) -> Result<Vec<u8>, Trouble> {
    let answer = client.get(url, &[])?;
    let mut body = Vec::new();
    let reader = answer.response.into_body().into_reader();
    reader.take(MAX_BYTES + 1).read_to_end(&mut body).map_err(Trouble::passing)?;
    if body.len() as u64 > MAX_BYTES {
        return Err(protocol(url, format!("a listing of more than {MAX_BYTES} bytes")).into());
    }
    Ok(body)
}
