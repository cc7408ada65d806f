//! Mistakes that the simulation must catch: its negative controls. Only tests have them.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Takes a fence's word for its proof.
    SkipReadback,
    /// Moves the workloads of a node that it did not fence.
    SkipFence,
    /// A new leader that does not watch first.
    FenceAtOnce,
    /// Lets a node in as soon as it is heard.
    UntaintEarly,
    NoSelfPartitionGuard,
    /// A new leader that does not go on with what it finds begun.
    ForgetFailovers,
}
