//! What `Debug` shows in place of secrets.

use std::collections::BTreeMap;
use std::fmt;

/// A map of secrets: which there are, not what they are.
pub(crate) struct Keys<'a>(pub(crate) &'a BTreeMap<String, String>);

impl fmt::Debug for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|key| (key, "***"))).finish()
    }
}
