//! An image's unpacked layers, to be read.

use super::messages::{
    Empty, InfoRequest, InfoResponse, RemoveSnapshotRequest, ViewSnapshotRequest, ViewSnapshotResponse,
};
use super::{Images, found};
use crate::RUNTIME;
use executors::wasm::Snapshot;
use executors::{Result, RootfsMount};
use std::time::{SystemTime, UNIX_EPOCH};

/// What begins the label by which an image's config names its layers in a snapshotter (containerd:
/// docs/garbage-collection.md).
const UNPACKED: &str = "containerd.io/gc.ref.snapshot.";

/// A read-only snapshot on top of an image's layers; dropping it removes it. It has no lease: were this process killed,
/// containerd would remove it as garbage. What it is made of are the image's layers, which are not its own.
pub struct View<'a> {
    images: &'a Images,
    snapshotter: String,
    key: String,
    mounts: Vec<RootfsMount>,
}

impl<'a> View<'a> {
    /// Looks in this snapshotter first; `None` when no snapshotter has the layers.
    pub fn of(images: &'a Images, snapshot: &Snapshot, snapshotter: Option<&str>) -> Result<Option<View<'a>>> {
        if let Some(snapshotter) = snapshotter
            && let Some(view) = View::make(images, snapshot, snapshotter)?
        {
            return Ok(Some(view));
        }
        let request = InfoRequest { digest: snapshot.config.to_string() };
        let info: InfoResponse = images.connection()?.call("content.v1.Content/Info", &request)?;
        for (label, chain) in info.info.unwrap_or_default().labels {
            if let Some(snapshotter) = label.strip_prefix(UNPACKED)
                && chain == snapshot.chain
                && let Some(view) = View::make(images, snapshot, snapshotter)?
            {
                return Ok(Some(view));
            }
        }
        Ok(None)
    }

    fn make(images: &'a Images, snapshot: &Snapshot, snapshotter: &str) -> Result<Option<View<'a>>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let key = format!("hybrid-precompile-{}-{}", std::process::id(), now.as_nanos());
        let (snapshotter, parent) = (snapshotter.to_owned(), snapshot.chain.clone());
        let request = ViewSnapshotRequest { snapshotter: snapshotter.clone(), key: key.clone(), parent };
        let answer = images.connection()?.call("snapshots.v1.Snapshots/View", &request);
        let Some(answer) = found::<ViewSnapshotResponse>(answer)? else { return Ok(None) };
        let mounts = answer.mounts.into_iter().map(|mount| RootfsMount {
            fstype: mount.kind,
            source: mount.source,
            target: mount.target,
            options: mount.options,
        });
        Ok(Some(View { images, snapshotter, key, mounts: mounts.collect() }))
    }

    /// How it is mounted.
    pub fn mounts(&self) -> Vec<RootfsMount> {
        self.mounts.clone()
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        let request = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: self.key.clone() };
        let removed = self.images.connection().and_then(|connection| {
            let answer = connection.call("snapshots.v1.Snapshots/Remove", &request);
            found::<Empty>(answer)
        });
        if let Err(error) = removed {
            eprintln!("{RUNTIME}: remove the snapshot {}: {error}", self.key);
        }
    }
}
