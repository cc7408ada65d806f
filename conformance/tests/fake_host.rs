//! The host suite on the model of a host.
#![allow(clippy::unwrap_used)]

use conformance::host::{BLOCK, Content, Fixture};
use host::{FakeHost, Host, LoopDevice, Probe};
use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use volume::Error;

conformance::host_suite!(fake, crate::FakeFixture::make);

struct FakeFixture {
    host: Arc<FakeHost>,
}

impl FakeFixture {
    fn make() -> Result<Box<dyn Fixture>, String> {
        let host = Arc::new(FakeHost::default());
        host.create_directory(Path::new("/test")).map_err(text)?;
        Ok(Box::new(Self { host }))
    }
}

impl Fixture for FakeFixture {
    fn host(&self) -> &dyn Host {
        &*self.host
    }

    fn directory(&self) -> &Path {
        Path::new("/test")
    }

    fn make_image(&self, name: &str, content: Content, size_bytes: u64) -> PathBuf {
        let path = self.directory().join(name);
        self.host.create_image(&path, size_bytes).unwrap();
        match content {
            Content::Blank => {}
            Content::FileSystem(fs) => {
                self.host.format_image(&path, fs, *uuid::Uuid::new_v4().as_bytes()).unwrap();
            }
            Content::Data => self.host.put_on_image(&path, &Probe::Other("unknown data".to_owned())).unwrap(),
        }
        path
    }

    fn truncate_image(&self, image: &Path, size_bytes: u64) {
        self.host.resize_image(image, size_bytes).unwrap();
    }

    fn fail_ext4(&self, device: &LoopDevice) {
        self.host.fail_file_system(device.number);
    }

    fn grow_image(&self, image: &Path, size_bytes: u64) {
        self.host.resize_image(image, size_bytes).unwrap();
    }

    fn make_symlink(&self, link: &Path, target: &Path) {
        self.host.create_symlink(link, target).unwrap();
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), String> {
        self.host.write_file(path, bytes).map_err(text)
    }

    fn read_file(&self, path: &Path) -> Result<Vec<u8>, String> {
        self.host.read_file(path).map_err(text)
    }

    fn write_block(&self, device: &Path, offset_bytes: u64, byte: u8) -> Result<(), String> {
        self.host.write_blocks(device, offset_bytes, &[byte; BLOCK as usize]).map_err(text)
    }

    fn read_block(&self, device: &Path, offset_bytes: u64) -> Result<Vec<u8>, String> {
        self.host.read_blocks(device, offset_bytes, BLOCK).map_err(text)
    }

    fn hold_open(&self, path: &Path) -> Box<dyn Any> {
        Box::new(self.host.open(path).unwrap())
    }
}

fn text(error: Error) -> String {
    error.chain()
}
