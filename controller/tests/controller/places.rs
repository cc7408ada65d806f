//! Backends of several places that come and go: which one a volume goes to, and what is said of those that are away.

use super::*;
use csi_proto::csi::group_controller_server::GroupController;
use csi_proto::csi::snapshot_metadata_server::SnapshotMetadata;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use volume::{
    Backends, Capacity, CapacityQuery, Error, ErrorKind, Health, Modify, Page, PageRequest, Restrictions, Segments,
    VolumeGuard, VolumeId, VolumeSpec,
};

/// A shelf that stands somewhere, and may be away or full.
struct Place {
    shelf: Arc<Shelf>,
    node: &'static str,
    away: AtomicBool,
    full: AtomicBool,
    /// Makes the volume and goes away before it says so.
    lost: AtomicBool,
}

impl Place {
    fn reach(&self) -> volume::Result<&Shelf> {
        if self.away.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, format!("the agent of node {} is away", self.node)));
        }
        Ok(&self.shelf)
    }
}

impl Backend for Place {
    fn name(&self) -> &volume::BackendName {
        self.shelf.name()
    }
    fn ensure_volume(&self, guard: &VolumeGuard, spec: &VolumeSpec) -> volume::Result<volume::Volume> {
        self.reach()?;
        if self.full.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Exhausted, format!("the pool of node {} is full", self.node)));
        }
        spec.topology.check(&self.topology()?)?;
        // The shelf stands on n1 whatever it is asked.
        let mut volume =
            self.shelf.ensure_volume(guard, &VolumeSpec { topology: Default::default(), ..spec.clone() })?;
        volume.accessible_topology = self.topology()?;
        if self.lost.swap(false, Ordering::SeqCst) {
            self.away.store(true, Ordering::SeqCst);
        }
        self.reach()?;
        Ok(volume)
    }
    fn find_volume(&self, id: &VolumeId) -> volume::Result<Option<volume::Volume>> {
        self.reach()?.find_volume(id)
    }
    fn delete_volume(&self, guard: &VolumeGuard, id: &VolumeId) -> volume::Result<()> {
        self.reach()?.delete_volume(guard, id)
    }
    fn list_volumes(&self, page: &PageRequest) -> volume::Result<Page<volume::Volume>> {
        self.reach()?.list_volumes(page)
    }
    fn capacity(&self, _: &CapacityQuery) -> volume::Result<Capacity> {
        self.reach()?.capacity(&CapacityQuery::default())
    }
    fn topology(&self) -> volume::Result<Vec<Segments>> {
        Ok(vec![Segments(text_map("csi.hawser.dev/node", self.node))])
    }
    fn check(&self) -> volume::Result<()> {
        Ok(())
    }
    fn restrictions(&self) -> Restrictions {
        Restrictions::default()
    }
    fn modify(&self) -> Option<&dyn Modify> {
        Backend::modify(&*self.shelf)
    }
    fn health(&self) -> Option<&dyn Health> {
        Backend::health(&*self.shelf)
    }
}

#[derive(Default)]
struct Map {
    known: Mutex<Vec<Arc<Place>>>,
    unheard: Mutex<Vec<String>>,
}

impl Backends for Map {
    fn all(&self) -> Vec<Arc<dyn Backend>> {
        self.known.lock().unwrap().iter().map(|place| place.clone() as _).collect()
    }
    fn defaults(&self) -> Vec<Arc<dyn Backend>> {
        self.all()
    }
    fn unheard(&self) -> Vec<String> {
        self.unheard.lock().unwrap().clone()
    }
}

/// Nodes n1, n2 and n3, with a backend each. Only that of n3 knows of changes in use and of health.
fn places() -> (ControllerService, Arc<Map>, [Arc<Place>; 3]) {
    let place = |node: &'static str| {
        let name = format!("on-{node}");
        let shelf = if node == "n3" { Shelf::new(&name) } else { Shelf::bare(&name) };
        Arc::new(Place {
            shelf,
            node,
            away: AtomicBool::new(false),
            full: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        })
    };
    let places = ["n1", "n2", "n3"].map(place);
    let map = Arc::new(Map { known: Mutex::new(places.to_vec()), ..Map::default() });
    let runtime = Runtime::new(Metrics::new(), Duration::from_secs(30));
    (ControllerService::over(map.clone(), Profile::Kubernetes, runtime), map, places)
}

fn asked(name: &str, requisite: &[&str], preferred: &[&str]) -> CreateVolumeRequest {
    let topology = |nodes: &[&str]| {
        nodes.iter().map(|node| Topology { segments: text_map("csi.hawser.dev/node", node) }).collect::<Vec<_>>()
    };
    let (requisite, preferred) = (topology(requisite), topology(preferred));
    CreateVolumeRequest {
        accessibility_requirements: Some(TopologyRequirement { requisite, preferred }),
        ..volume_request(name)
    }
}

async fn create(service: &ControllerService, request: CreateVolumeRequest) -> Result<String, Status> {
    let volume = inner(service.create_volume(Request::new(request)).await)?.volume.unwrap();
    Ok(volume.volume_id.split_once('.').unwrap().0.to_owned())
}

const ALL: [&str; 3] = ["n1", "n2", "n3"];

#[tokio::test]
async fn a_volume_goes_where_it_is_asked_for() {
    let (service, _, _) = places();
    assert_eq!(create(&service, asked("a", &["n2"], &[])).await.unwrap(), "on-n2");
    assert_eq!(create(&service, asked("b", &ALL, &["n3", "n1", "n2"])).await.unwrap(), "on-n3");
    assert_eq!(create(&service, volume_request("c")).await.unwrap(), "on-n1");
    // The name means the volume that there is, though another place is preferred by now.
    assert_eq!(create(&service, asked("b", &ALL, &["n1", "n2", "n3"])).await.unwrap(), "on-n3");
    refused(create(&service, asked("d", &["n9"], &["n9"])).await, Code::ResourceExhausted);
    let named = CreateVolumeRequest { parameters: text_map("backend", "on-n2"), ..asked("e", &ALL, &["n1"]) };
    assert_eq!(create(&service, named).await.unwrap(), "on-n2");
    let named = CreateVolumeRequest { parameters: text_map("backend", "on-n3"), ..asked("e", &ALL, &["n1"]) };
    refused(create(&service, named).await, Code::AlreadyExists);
}

#[tokio::test]
async fn one_that_is_away_or_full_is_passed_over_where_another_will_do() {
    let (service, _, [n1, n2, n3]) = places();
    n1.away.store(true, Ordering::SeqCst);
    n2.full.store(true, Ordering::SeqCst);
    assert_eq!(create(&service, asked("a", &ALL, &ALL)).await.unwrap(), "on-n3");
    let away = refused(create(&service, asked("b", &["n1"], &["n1"])).await, Code::Unavailable);
    assert!(away.contains("node n1 is away"), "{away}");
    let full = refused(create(&service, asked("b", &["n1", "n2"], &["n1"])).await, Code::ResourceExhausted);
    assert!(full.contains("node n2 is full"), "{full}");
    n3.full.store(true, Ordering::SeqCst);
    let full = refused(create(&service, asked("b", &ALL, &["n3", "n2"])).await, Code::ResourceExhausted);
    assert!(full.contains("node n3 is full"), "the preferred one's reason: {full}");
    let capacity = async |node: Option<&str>| {
        let accessible_topology = node.map(|node| Topology { segments: text_map("csi.hawser.dev/node", node) });
        let request = GetCapacityRequest { accessible_topology, ..Default::default() };
        inner(service.get_capacity(Request::new(request)).await)
    };
    refused(capacity(Some("n1")).await, Code::Unavailable);
    assert!(capacity(Some("n2")).await.is_ok() && capacity(None).await.is_ok());
}

/// Made, and the answer lost: a retry must not make it again elsewhere, or the first would stay for ever.
#[tokio::test]
async fn a_volume_that_may_be_there_is_not_made_elsewhere() {
    let (service, _, [n1, n2, n3]) = places();
    n1.lost.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        refused(create(&service, asked("a", &ALL, &ALL)).await, Code::Unavailable);
    }
    for other in [&n2, &n3] {
        assert!(other.list_volumes(&PageRequest::default()).unwrap().entries.is_empty());
    }
    assert_eq!(create(&service, asked("b", &ALL, &ALL)).await.unwrap(), "on-n2", "nothing is known of this one");
    n1.away.store(false, Ordering::SeqCst);
    assert_eq!(create(&service, asked("a", &ALL, &["n3"])).await.unwrap(), "on-n1");
    assert_eq!(n1.list_volumes(&PageRequest::default()).unwrap().entries.len(), 1);
}

#[tokio::test]
async fn what_is_not_known_yet_is_not_denied() {
    let (service, map, [n1, ..]) = places();
    let list = async || inner(service.list_volumes(Request::new(ListVolumesRequest::default())).await);
    let get = async || {
        let request = ControllerGetVolumeRequest { volume_id: "elsewhere.v".to_owned() + &"0".repeat(32) };
        inner(service.controller_get_volume(Request::new(request)).await)
    };
    let delete = async || {
        let volume_id = "elsewhere.v".to_owned() + &"0".repeat(32);
        let request = DeleteVolumeRequest { volume_id, ..Default::default() };
        inner(service.delete_volume(Request::new(request)).await)
    };
    assert!(list().await.is_ok());
    refused(get().await, Code::NotFound);
    refused(delete().await, Code::FailedPrecondition);
    map.unheard.lock().unwrap().push("node n4".to_owned());
    for message in [
        refused(list().await, Code::Unavailable),
        refused(get().await, Code::Unavailable),
        refused(delete().await, Code::Unavailable),
        refused(create(&service, asked("a", &["n4"], &["n4"])).await, Code::Unavailable),
    ] {
        assert!(message.contains("node n4"), "{message}");
    }
    assert_eq!(create(&service, asked("a", &ALL, &["n2"])).await.unwrap(), "on-n2");
    map.unheard.lock().unwrap().clear();
    n1.away.store(true, Ordering::SeqCst);
    refused(list().await, Code::Unavailable);
    map.known.lock().unwrap().clear();
    map.unheard.lock().unwrap().push("node n1".to_owned());
    refused(create(&service, volume_request("b")).await, Code::Unavailable);
}

#[tokio::test]
async fn mutable_parameters_go_where_they_are_some() {
    let (service, _, _) = places();
    let with = |request| CreateVolumeRequest { mutable_parameters: text_map("readAheadKiB", "64"), ..request };
    assert_eq!(create(&service, with(asked("a", &ALL, &["n1", "n3"]))).await.unwrap(), "on-n3");
    assert_eq!(create(&service, with(volume_request("b"))).await.unwrap(), "on-n3");
    let none = refused(create(&service, with(asked("c", &["n1", "n2"], &["n1"]))).await, Code::InvalidArgument);
    assert!(none.contains("readAheadKiB") && none.contains("on-n1, on-n2"), "{none}");
}

#[tokio::test]
async fn health_is_told_whole_or_not_at_all() {
    let (service, map, [_, _, n3]) = places();
    let list = async || {
        inner(service.controller_list_volume_health(Request::new(ControllerListVolumeHealthRequest::default())).await)
    };
    assert!(list().await.is_ok());
    map.unheard.lock().unwrap().push("node n4".to_owned());
    let message = refused(list().await, Code::Unavailable);
    assert!(message.contains("node n4"), "{message}");
    map.unheard.lock().unwrap().clear();
    n3.shelf.set_away(true);
    refused(list().await, Code::Unavailable);
}

/// UNIMPLEMENTED would be taken for what this driver is like.
#[tokio::test]
async fn services_of_backends_that_are_not_known_yet() {
    let (service, map, _) = places();
    let (groups, metadata) = (service.group(), service.metadata());
    let group = async || {
        let request = CreateVolumeGroupSnapshotRequest { name: "g".to_owned(), ..Default::default() };
        inner(groups.create_volume_group_snapshot(Request::new(request)).await)
    };
    let blocks = async || {
        let request = GetMetadataAllocatedRequest { snapshot_id: "s".to_owned(), ..Default::default() };
        metadata.get_metadata_allocated(Request::new(request)).await.map(|_| ())
    };
    refused(group().await, Code::Unimplemented);
    refused(blocks().await, Code::Unimplemented);
    map.unheard.lock().unwrap().push("node n4".to_owned());
    refused(group().await, Code::Unavailable);
    refused(blocks().await, Code::Unavailable);
}
