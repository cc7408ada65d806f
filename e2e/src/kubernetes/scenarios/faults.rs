//! Processes that are killed.

use super::writer::Writer;
use crate::failure::{Result, ensure};
use crate::kubernetes::driver::{CONTROLLER, NODE_DRIVER};
use crate::kubernetes::space::{LIMIT, Space, Volume, claim, on_node, pod};
use crate::lab::entries;
use crate::lab::kernel::program;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The driver on the node is killed while a pod writes: the pod goes on writing, and the driver comes back and unmounts.
pub(super) fn node_plugin_killed(space: &Space) -> Result<()> {
    while_writing(space, NODE_DRIVER)
}

pub(super) fn kubelet_killed(space: &Space) -> Result<()> {
    while_writing(space, "/kubelet --config")
}

pub(super) fn containerd_killed(space: &Space) -> Result<()> {
    while_writing(space, "containerd --config")
}

fn while_writing(space: &Space, part: &str) -> Result<()> {
    let name = space.node(2);
    let writer = Writer::start(space, name)?;
    let node = space.lab()?.node(name)?;
    // What supervises it names it as well.
    let command = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let is_it = |pid: &u32| !["sh", "nsenter"].contains(&command(*pid).trim());
    let find = || -> Vec<u32> { node.processes(part).into_iter().filter(is_it).collect() };
    let killed = find();
    ensure(killed.len() == 1, || format!("{name} has {killed:?} as {part}"))?;
    program("kill", &["-KILL", &killed[0].to_string()])?;
    space.look("it runs again", || {
        let again = find();
        Ok(if again.len() == 1 && again != killed { Ok(()) } else { Err(format!("{again:?}")) })
    })?;
    writer.ensure_goes_on()?;
    writer.verify(space.node(0))
}

/// The controller manager is killed while a pod writes, and while another waits to have its volume attached.
pub(super) fn controller_manager_killed(space: &Space) -> Result<()> {
    let writer = Writer::start(space, space.node(2))?;
    let began = Instant::now();
    space.create_claim(&claim("more", "hawser", "ReadWriteOnce", "1Gi"))?;
    space.create_pod(&on_node(pod("more", &[Volume::at("more", "/data")]), space.node(1)))?;
    space.lab()?.control_plane.restart_manager()?;
    space.wait_running("more")?;
    space.time("from the kill to another pod with a volume running", began.elapsed());
    writer.verify(space.node(0))
}

const CYCLES: u32 = 200;
/// At the same time.
const WORKERS: u32 = 10;

/// Claims are made and deleted, one after another and ten at a time, while the controller is killed now and then: each is
/// bound, and nothing is left of any.
pub(super) fn controller_killed(space: &Space) -> Result<()> {
    let pools = space.lab()?.place.pool_directories();
    let volumes = || -> Vec<_> { pools.iter().flat_map(|pool| entries(&pool.join("volumes"))).collect() };
    let before = volumes();
    let began = Instant::now();
    let workers_left = AtomicU32::new(WORKERS);
    let (kills, cycles) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let left = &workers_left;
                scope.spawn(move || {
                    let ended = (0..CYCLES / WORKERS).try_for_each(|cycle| create_and_delete(space, worker, cycle));
                    left.fetch_sub(1, Ordering::SeqCst);
                    ended
                })
            })
            .collect();
        let kills = kill_now_and_then(space, &workers_left);
        let ended = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err("a worker panicked".into())));
        (kills, ended.collect::<Result<Vec<()>>>())
    });
    cycles?;
    let kills = kills?;
    space.time(&format!("{CYCLES} cycles, the controller killed {kills} times"), began.elapsed());
    ensure(kills >= 3, || format!("the controller was killed {kills} times only"))?;
    // A creation that was overtaken by its deletion is cleared up after the claim is gone.
    space.look("no volume of a claim in the cluster", || {
        let left = space.volumes()?;
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{} are left", left.len())) })
    })?;
    space.look("no volume of a claim in the pool", || {
        let left: Vec<_> = volumes().into_iter().filter(|path| !before.contains(path)).collect();
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
    })
}

fn create_and_delete(space: &Space, worker: u32, cycle: u32) -> Result<()> {
    let name = format!("data-{worker}-{cycle}");
    let path = space.path("persistentvolumeclaims", &name);
    space.create_claim(&claim(&name, "hawser", "ReadWriteOnce", "64Mi"))?;
    // Every fourth is deleted while it is being made.
    if cycle % 4 != 3 {
        space.wait_bound(&name)?;
    }
    space.cluster.delete(&path)?;
    space.cluster.wait_gone(&path, LIMIT)
}

/// The process of the controller, at random times, until no worker is left. How often.
fn kill_now_and_then(space: &Space, workers_left: &AtomicU32) -> Result<u32> {
    let mut kills = 0;
    while workers_left.load(Ordering::SeqCst) > 0 {
        let random = uuid::Uuid::new_v4().as_u128() % 3000;
        std::thread::sleep(Duration::from_millis(200 + u64::try_from(random).unwrap_or_default()));
        for pid in space.lab()?.nodes.iter().flat_map(|node| node.processes(CONTROLLER)) {
            // It may have ended by itself just now.
            kills += u32::from(program("kill", &["-KILL", &pid.to_string()]).is_ok());
        }
    }
    Ok(kills)
}
