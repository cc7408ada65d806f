//! One list over several backends.
//!
//! A token is `<backend>/<the backend's own token>`: where to go on. An empty second half is that backend's beginning.

use crate::core::Core;
use std::sync::Arc;
use volume::{Backend, Error, ErrorKind, Page, PageRequest, Result};

/// What one answer holds at most, also when no limit is asked for: gRPC clients refuse messages above 4 MiB, and an entry
/// has some hundred bytes.
const MAX_ENTRIES: usize = 2000;

pub(crate) fn request(max_entries: i32, token: String) -> Result<PageRequest> {
    let max_entries = match usize::try_from(max_entries) {
        Err(_) => return Err(Error::invalid(format!("max_entries is {max_entries}; it cannot be negative"))),
        Ok(0) => MAX_ENTRIES,
        Ok(wanted) => wanted.min(MAX_ENTRIES),
    };
    Ok(PageRequest { max_entries, token: Some(token).filter(|token| !token.is_empty()) })
}

pub(crate) fn across<T>(
    core: &Core,
    request: &PageRequest,
    list: impl Fn(&dyn Backend, &PageRequest) -> Result<Page<T>>,
) -> Result<Page<T>> {
    // Once: backends come and go.
    let backends = core.backends();
    let (first, mut token) = match &request.token {
        None => (0, None),
        Some(token) => start(&backends, token)?,
    };
    let mut entries = Vec::new();
    for backend in &backends[first..] {
        let max_entries = request.max_entries.saturating_sub(entries.len());
        if request.max_entries > 0 && max_entries == 0 {
            return Ok(Page { entries, next_token: Some(format!("{}/", backend.name())) });
        }
        let page = list(&**backend, &PageRequest { max_entries, token: token.take() })?;
        entries.extend(page.entries);
        if let Some(next) = page.next_token {
            return Ok(Page { entries, next_token: Some(format!("{}/{next}", backend.name())) });
        }
    }
    Ok(Page { entries, next_token: None })
}

fn start(backends: &[Arc<dyn Backend>], token: &str) -> Result<(usize, Option<String>)> {
    let known = token.split_once('/').and_then(|(name, rest)| {
        let backend = backends.iter().position(|backend| backend.name().as_str() == name)?;
        Some((backend, Some(rest.to_owned()).filter(|rest| !rest.is_empty())))
    });
    known.ok_or_else(|| {
        Error::new(
            ErrorKind::BadPageToken,
            format!("page token {token:?} is not one this driver gave out; list from the start"),
        )
    })
}
