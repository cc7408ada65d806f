//! What is wrong with a watch, told when it begins or changes, and when it is over.

use crate::client::explain_watch;
use kube::runtime::watcher;

pub(crate) struct Trouble {
    what: &'static str,
    last: Option<String>,
}

impl Trouble {
    /// `what` is watched: "pods".
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, last: None }
    }

    /// The event, if it is one.
    pub(crate) fn heard<T>(&mut self, event: watcher::Result<T>) -> Option<T> {
        match event {
            Ok(event) => {
                if self.last.take().is_some() {
                    tracing::info!("the {} of the cluster are watched again", self.what);
                }
                Some(event)
            }
            Err(error) => {
                let text = explain_watch(&format!("watch the {}", self.what), error).chain();
                if self.last.as_ref() != Some(&text) {
                    let known = "those last known count; trying again";
                    tracing::warn!(error = text, "the {} of the cluster cannot be watched; {known}", self.what);
                    self.last = Some(text);
                }
                None
            }
        }
    }
}
