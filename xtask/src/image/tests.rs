use super::layer::digest;
use super::*;
use flate2::read::GzDecoder;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Any file that is always there.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

#[test]
fn the_same_files_give_the_same_bytes() {
    let build = |order: [&str; 2]| {
        let mut layer = LayerBuilder::new("test");
        for name in order {
            layer.copy(Path::new(FILE), name).unwrap();
        }
        layer.link("bin", "usr/bin");
        layer.finish().unwrap()
    };
    let (one, other) = (build(["usr/bin/b", "a"]), build(["a", "usr/bin/b"]));
    assert_eq!(one.packed, other.packed);
    assert_eq!(one.unpacked_digest, other.unpacked_digest);
    assert_ne!(one.packed, build(["a", "usr/bin/c"]).packed);
}

/// What a client checks: each descriptor's digest and size, and the digest of each layer once it is unpacked.
#[test]
fn an_archive_holds_what_it_says() {
    let mut shared = LayerBuilder::new("hawser");
    shared.copy(Path::new(FILE), "hawser").unwrap();
    let shared = shared.finish().unwrap();
    let mut other = LayerBuilder::new("other");
    other.copy(Path::new("/etc/passwd"), "etc/passwd").unwrap();
    let other = other.finish().unwrap();
    let image = |name: &str, layers: Vec<Layer>| Image {
        name: format!("example.com/{name}:1"),
        version: "1".to_owned(),
        layers,
        user: "1:1",
    };
    let mut layout = Layout::default();
    layout.add(&image("a", vec![shared.clone()])).unwrap();
    layout.add(&image("b", vec![other, shared])).unwrap();
    let files = unpack(&layout.archive().unwrap());
    let blobs: Vec<_> = files.iter().filter(|(name, _)| name.starts_with("blobs/")).collect();
    assert_eq!(blobs.len(), 6, "two manifests, two configs, and the shared layer once");
    for (name, bytes) in &blobs {
        assert_eq!(format!("blobs/{}", digest(bytes).replace(':', "/")), **name);
    }
    let blob = |descriptor: &Value| {
        let bytes = &files[&format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"))];
        assert_eq!(descriptor["size"], bytes.len());
        bytes.clone()
    };
    let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let index = parsed(&files["index.json"]);
    for (descriptor, (name, layers)) in index["manifests"].as_array().unwrap().iter().zip([("a", 1), ("b", 2)]) {
        assert_eq!(descriptor["annotations"]["io.containerd.image.name"], format!("example.com/{name}:1"));
        let manifest = parsed(&blob(descriptor));
        let config = parsed(&blob(&manifest["config"]));
        assert_eq!(config["config"]["User"], "1:1");
        let packed = manifest["layers"].as_array().unwrap();
        assert_eq!(packed.len(), layers);
        for (layer, unpacked) in packed.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
            let mut bytes = Vec::new();
            GzDecoder::new(blob(layer).as_slice()).read_to_end(&mut bytes).unwrap();
            assert_eq!(*unpacked, digest(&bytes));
        }
    }
}

#[test]
fn every_program_that_the_driver_starts_is_in_the_image() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut started = programs::started_by_host(root).unwrap();
    started.retain(|name| !["sh", "sleep", "true", "yes"].contains(&name.as_str()));
    started.sort();
    started.dedup();
    let mut packed = programs::PROGRAMS.map(str::to_owned).to_vec();
    packed.sort();
    assert_eq!(started, packed);
}

#[test]
fn a_binary_that_wants_libraries_is_refused() {
    assert!(programs::ensure_static(Path::new("/bin/sh")).unwrap_err().contains("is not static: it wants"));
    programs::ensure_static(Path::new("/proc/self/exe")).unwrap();
}

fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(name, bytes);
    }
    files
}
