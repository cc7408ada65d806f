//! Carries one action out, beside the runner.

use super::{OVERTAKEN, Orchestrator, Shared};
use crate::{Action, Answer, OrchestratorView, Token, View};
use std::sync::Arc;
use volume::NodeId;

/// Answers with the token in any case, at the deadline at the latest.
pub(super) fn begin<O: Orchestrator>(shared: &Arc<Shared<O>>, token: Token, node: NodeId, action: Action) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let limit = if matches!(action, Action::Fence { .. }) { shared.fence_limit } else { shared.action_limit };
        let is_look = action.is_look();
        let words = format!("{action:?}");
        let answered = tokio::time::timeout(limit, carry_out(&shared, token, &node, action)).await;
        let answer = match answered {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => Answer::Failed(why),
            Err(_) => Answer::Failed(format!("no answer within {} ms; it may still be carried out", limit.as_millis())),
        };
        match &answer {
            Answer::Failed(why) => tracing::warn!(%node, action = words, why, "an action of the supervisor failed"),
            Answer::Observed(_) if is_look => tracing::debug!(%node, action = words, ?answer, "looked"),
            _ => tracing::info!(%node, action = words, "an action of the supervisor was carried out"),
        }
        let _ = shared.answers.send((token, answer));
    });
}

async fn carry_out<O: Orchestrator>(
    shared: &Arc<Shared<O>>,
    token: Token,
    node: &NodeId,
    action: Action,
) -> Result<Answer, String> {
    let orchestrator = &shared.orchestrator;
    // The storage asks again, right before its own effect.
    if !shared.confirm(token) {
        return Err(OVERTAKEN.to_owned());
    }
    match action {
        Action::Inspect | Action::VerifyReattach { .. } => look(shared, node).await.map(Answer::Observed),
        Action::ReadBack => {
            let node = node.clone();
            let storage = blocking(shared, move |shared| shared.storage.view(&node, &[])).await?;
            Ok(Answer::Observed(View { storage, orchestrator: None }))
        }
        Action::Fence { incarnation } => {
            let node = node.clone();
            let fence = move |shared: &Shared<O>| {
                shared.storage.fence(&node, incarnation, || shared.confirm(token)).map(Answer::Fenced)
            };
            blocking(shared, fence).await
        }
        Action::Taint { incarnation } => orchestrator.taint(node, incarnation).await.map(|()| Answer::Done),
        Action::Evict { workloads } => orchestrator.evict(node, &workloads).await.map(|()| Answer::Done),
        Action::Unfence { incarnation } => {
            let node = node.clone();
            blocking(shared, move |shared| shared.storage.unfence(&node, incarnation)).await.map(|()| Answer::Done)
        }
        Action::Untaint { incarnation } => orchestrator.untaint(node, incarnation).await.map(|()| Answer::Done),
    }
}

async fn look<O: Orchestrator>(shared: &Arc<Shared<O>>, node: &NodeId) -> Result<View, String> {
    let seen = shared.orchestrator.look(node).await?;
    let node = node.clone();
    blocking(shared, move |shared| {
        let storage = shared.storage.view(&node, &seen.workloads)?;
        let workloads = shared.storage.movable(&seen.workloads, &storage)?;
        let orchestrator = OrchestratorView { node: seen.node, workloads };
        Ok(View { storage, orchestrator: Some(orchestrator) })
    })
    .await
}

/// What the storage does ends in system calls and answers of other machines that are waited for.
async fn blocking<O: Orchestrator, T: Send + 'static>(
    shared: &Arc<Shared<O>>,
    work: impl FnOnce(&Shared<O>) -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let shared = Arc::clone(shared);
    let ran = tokio::task::spawn_blocking(move || work(&shared)).await;
    ran.unwrap_or_else(|failed| Err(format!("a task of the supervisor failed: {failed}")))
}
