//! What a watch has told so far.

use kube::ResourceExt;
use kube::runtime::watcher::Event;
use std::collections::BTreeMap;

/// Objects by name. While a watch begins anew, what was known before stays.
#[derive(Debug)]
pub(crate) struct Mirror<V> {
    known: BTreeMap<String, V>,
    coming: BTreeMap<String, V>,
    is_listed: bool,
}

impl<V> Default for Mirror<V> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), coming: BTreeMap::new(), is_listed: false }
    }
}

impl<V: PartialEq> Mirror<V> {
    /// Whether anything is another thing than before.
    pub(crate) fn take<K: ResourceExt>(&mut self, event: Event<K>, seen: impl Fn(&K) -> V) -> bool {
        match event {
            Event::Apply(object) => {
                let value = seen(&object);
                let is_same = self.known.get(&object.name_any()) == Some(&value);
                self.known.insert(object.name_any(), value);
                !is_same
            }
            Event::Delete(object) => self.known.remove(&object.name_any()).is_some(),
            Event::Init => {
                self.coming.clear();
                false
            }
            Event::InitApply(object) => {
                self.coming.insert(object.name_any(), seen(&object));
                false
            }
            Event::InitDone => {
                self.known = std::mem::take(&mut self.coming);
                self.is_listed = true;
                true
            }
        }
    }

    /// `None` until it is known whole.
    pub(crate) fn listed(&self) -> Option<&BTreeMap<String, V>> {
        self.is_listed.then_some(&self.known)
    }
}
