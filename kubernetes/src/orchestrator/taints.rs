//! Our mark among a node's taints: a pure change of the list, written as a compare-and-swap.
//!
//! The effect is NoSchedule, not NoExecute. What moves volumes looks at the key alone (the attach/detach controller and the
//! collector of terminating pods: `taints.TaintKeyExists`), while NoExecute would have a third controller delete every pod
//! of the node by *name*, through a queue with a rate limit: a StatefulSet's pod that already runs elsewhere under
//! its old name would be deleted once more. And on its return kubelet would refuse pods that do not tolerate it.

use super::objects::{Node, OUT_OF_SERVICE, Taint};
use crate::orchestrator::words;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use volume::Incarnation;

const EFFECT: &str = "NoSchedule";
/// A taint is unique by key and effect, and somebody else's stays what it is.
const OTHER_EFFECT: &str = "NoExecute";
const TRIES: usize = 5;

/// What the list is to be; `None`: it is that already.
pub(super) fn with_mark(taints: &[Taint], incarnation: Incarnation) -> Result<Option<Vec<Taint>>, String> {
    if taints.iter().any(|taint| taint.incarnation() == Some(incarnation)) {
        return Ok(None);
    }
    let mut kept: Vec<Taint> = taints.iter().filter(|taint| taint.incarnation().is_none()).cloned().collect();
    let is_free = |effect: &&str| !kept.iter().any(|taint| taint.key == OUT_OF_SERVICE && taint.effect == *effect);
    let Some(effect) = [EFFECT, OTHER_EFFECT].into_iter().find(is_free) else {
        return Err(format!("the node has taints {OUT_OF_SERVICE} of somebody else; remove one of them"));
    };
    kept.push(Taint {
        key: OUT_OF_SERVICE.to_owned(),
        value: Some(incarnation.to_string()),
        effect: effect.to_owned(),
        rest: serde_json::Map::new(),
    });
    Ok(Some(kept))
}

pub(super) fn without_mark(taints: &[Taint], incarnation: Incarnation) -> Option<Vec<Taint>> {
    let kept: Vec<Taint> = taints.iter().filter(|taint| taint.incarnation() != Some(incarnation)).cloned().collect();
    (kept.len() < taints.len()).then_some(kept)
}

/// Changes the list if nobody else changes the node meanwhile, else looks again. Fine when there is no such node.
pub(super) async fn change(
    api: &Api<Node>,
    name: &str,
    plan: impl Fn(&[Taint]) -> Result<Option<Vec<Taint>>, String>,
) -> Result<(), String> {
    for _ in 0..TRIES {
        let Some(node) = api.get_opt(name).await.map_err(|error| words(&error))? else { return Ok(()) };
        let Some(taints) = plan(&node.spec.taints)? else { return Ok(()) };
        let version = &node.metadata.resource_version;
        let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}}));
        match api.patch(name, &PatchParams::default(), &patch).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(words(&error)),
        }
    }
    Err(format!("node {name} keeps changing under the change of its taints"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(value: &str, effect: &str) -> Taint {
        let json =
            json!({"key": OUT_OF_SERVICE, "value": value, "effect": effect, "timeAdded": "2026-01-01T00:00:00Z"});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn others_taints_are_left_as_they_are() {
        let (first, second) = (Incarnation::new_random(), Incarnation::new_random());
        let other: Taint =
            serde_json::from_value(json!({"key": "a", "effect": "NoExecute", "timeAdded": "x"})).unwrap();
        let marked = with_mark(std::slice::from_ref(&other), first).unwrap().unwrap();
        assert_eq!(marked[0], other);
        assert_eq!(
            serde_json::to_value(&marked[0]).unwrap(),
            json!({"key": "a", "effect": "NoExecute", "timeAdded": "x"})
        );
        assert_eq!((marked[1].effect.as_str(), marked[1].incarnation()), ("NoSchedule", Some(first)));
        assert_eq!(with_mark(&marked, first).unwrap(), None);

        let again = with_mark(&marked, second).unwrap().unwrap();
        assert_eq!(again.len(), 2, "the mark of an earlier life is replaced");
        assert_eq!(without_mark(&again, first), None, "late calls for an earlier life change nothing");
        assert_eq!(without_mark(&again, second).unwrap(), vec![other]);
    }

    #[test]
    fn an_administrators_mark_is_not_ours() {
        let incarnation = Incarnation::new_random();
        let theirs = taint("nodeshutdown", "NoSchedule");
        let marked = with_mark(std::slice::from_ref(&theirs), incarnation).unwrap().unwrap();
        assert_eq!((marked[0].clone(), marked[1].effect.as_str()), (theirs.clone(), "NoExecute"));
        assert_eq!(without_mark(&marked, incarnation).unwrap(), vec![theirs.clone()]);
        assert!(with_mark(&[theirs, taint("nodeshutdown", "NoExecute")], incarnation).is_err());
    }
}
