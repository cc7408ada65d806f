//! Everything that is compared; docs/performance.md says how each figure comes about.

use super::comparison::{Comparison, Goal, Pick};
use super::series::Statistic::{Max, P50, P99};

const fn row(measure: &'static str, about: &'static str, ours: Pick, baseline: Option<Pick>, goal: Goal) -> Comparison {
    Comparison { measure, about, ours, baseline, goal }
}

const fn against(
    measure: &'static str,
    about: &'static str,
    ours: &'static str,
    baseline: &'static str,
    goal: Goal,
) -> Comparison {
    row(measure, about, (ours, P50), Some((baseline, P50)), goal)
}

/// 1 TiB has 1,024 times the bytes of 1 GiB: what costs by bytes is far beyond this.
const BY_EXTENTS: Goal = Goal::AtMost(2.0);

pub(super) const ALL: &[Comparison] = &[
    against("path", "up, ext4 of 10 GiB, against programs", "up hawser", "up programs", Goal::TimesFaster(10.0)),
    against("path", "up, against the bare system calls", "up hawser", "up bare", Goal::AtMost(1.5)),
    against("path", "down, against programs", "down hawser", "down programs", Goal::Shown),
    against("path", "down, against the bare system calls", "down hawser", "down bare", Goal::Shown),
    row(
        "scale",
        "stage p50, 1,000 volumes against 10",
        ("stage hawser many", P50),
        Some(("stage hawser few", P50)),
        Goal::AtMost(1.5),
    ),
    row(
        "scale",
        "stage p99, 1,000 volumes against 10",
        ("stage hawser many", P99),
        Some(("stage hawser few", P99)),
        Goal::AtMost(2.5),
    ),
    row(
        "scale",
        "bare calls p50, 1,000 volumes against 10",
        ("stage bare many", P50),
        Some(("stage bare few", P50)),
        Goal::Shown,
    ),
    row(
        "scale",
        "bare calls p99, 1,000 volumes against 10",
        ("stage bare many", P99),
        Some(("stage bare few", P99)),
        Goal::Shown,
    ),
    against("scale", "stage p50 at 10, against bare calls", "stage hawser few", "stage bare few", Goal::Shown),
    against("scale", "stage p50 at 1,000, against bare calls", "stage hawser many", "stage bare many", Goal::Shown),
    row("scale", "node process, idle", ("memory idle", P50), None, Goal::Below(8.0)),
    row("scale", "node process, 1,000 volumes", ("memory many", P50), None, Goal::Below(12.0)),
    row("scale", "the same after a restart", ("memory many after restart", P50), None, Goal::Below(12.0)),
    row("scale", "restart with 1,000 volumes, slowest", ("restart many", Max), None, Goal::Below(1000.0)),
    against("snapshots", "snapshot, 1 TiB against 1 GiB", "snapshot 1 TiB many", "snapshot 1 GiB many", BY_EXTENTS),
    against(
        "snapshots",
        "snapshot, 100,000 extents against 1,000",
        "snapshot 1 TiB many",
        "snapshot 1 TiB few",
        Goal::Shown,
    ),
    against("snapshots", "clone, 1 TiB against 1 GiB", "clone 1 TiB many", "clone 1 GiB many", BY_EXTENTS),
    against("snapshots", "clone, 100,000 extents against 1,000", "clone 1 TiB many", "clone 1 TiB few", Goal::Shown),
    against("snapshots", "allocated, 1 TiB against 1 GiB", "allocated 1 TiB many", "allocated 1 GiB many", BY_EXTENTS),
    against(
        "snapshots",
        "allocated, 100,000 extents against 1,000",
        "allocated 1 TiB many",
        "allocated 1 TiB few",
        Goal::Shown,
    ),
    against("snapshots", "delta, 1 TiB against 1 GiB", "delta 1 TiB many", "delta 1 GiB many", BY_EXTENTS),
    against("snapshots", "delta, 100,000 extents against 1,000", "delta 1 TiB many", "delta 1 TiB few", Goal::Shown),
    against("fio", "1 MiB read, volume against pool", "1m read volume", "1m read pool", Goal::AtLeast(0.97)),
    against("fio", "1 MiB write, volume against pool", "1m write volume", "1m write pool", Goal::AtLeast(0.97)),
    against("fio", "1 MiB read, loop by hand against pool", "1m read loop by hand", "1m read pool", Goal::Shown),
    against("fio", "1 MiB write, loop by hand against pool", "1m write loop by hand", "1m write pool", Goal::Shown),
    against(
        "fio",
        "4 KiB read, volume against loop by hand",
        "4k randread volume",
        "4k randread loop by hand",
        Goal::AtLeast(0.95),
    ),
    against(
        "fio",
        "4 KiB write, volume against loop by hand",
        "4k randwrite volume",
        "4k randwrite loop by hand",
        Goal::AtLeast(0.95),
    ),
    against("fio", "4 KiB read, volume against pool", "4k randread volume", "4k randread pool", Goal::Shown),
    against("fio", "4 KiB write, volume against pool", "4k randwrite volume", "4k randwrite pool", Goal::Shown),
    against("fio", "1 MiB read, directory against pool", "1m read directory", "1m read pool", Goal::AtLeast(0.97)),
    against("fio", "1 MiB write, directory against pool", "1m write directory", "1m write pool", Goal::AtLeast(0.97)),
    against(
        "fio",
        "4 KiB read, directory against pool",
        "4k randread directory",
        "4k randread pool",
        Goal::AtLeast(0.97),
    ),
    against(
        "fio",
        "4 KiB write, directory against pool",
        "4k randwrite directory",
        "4k randwrite pool",
        Goal::AtLeast(0.97),
    ),
];
