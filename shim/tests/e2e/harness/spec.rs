//! OCI specs written by the test.
use super::{Containerd, Kind, NAMESPACE, Run};
use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A spec to change and then run.
pub struct Spec<'a> {
    containerd: &'a Containerd,
    id: String,
    pub value: Value,
}

impl<'a> Spec<'a> {
    /// What `ctr oci spec` prints, on the image of this kind, with the probe and its arguments as the process.
    pub fn default(containerd: &'a Containerd, kind: Kind, id: &str, arguments: &[&str]) -> Result<Spec<'a>> {
        let text = containerd.ctr(["oci", "spec"]).done()?.stdout;
        let mut value: Value = serde_json::from_str(&text).context("parsing the spec ctr prints")?;
        let arguments: Vec<&str> = [&[kind.program()], arguments].concat();
        value["process"]["args"] = json!(arguments);
        value["root"] = json!({"path": containerd.rootfs(kind.image_name())});
        value["linux"]["cgroupsPath"] = json!(format!("/{NAMESPACE}/{id}"));
        Ok(Spec { containerd, id: id.to_owned(), value })
    }

    /// Sets the value at a JSON pointer (RFC 6901), whose last part may be new.
    pub fn set(mut self, pointer: &str, value: Value) -> Result<Spec<'a>> {
        let (parent, last) = pointer.rsplit_once('/').context("a pointer begins with /")?;
        let parent = self.value.pointer_mut(parent).with_context(|| format!("the spec has no {parent}"))?;
        parent[last] = value;
        Ok(self)
    }

    /// Adds a mount.
    pub fn mount(mut self, mount: Value) -> Result<Spec<'a>> {
        self.value["mounts"].as_array_mut().context("the spec has mounts")?.push(mount);
        Ok(self)
    }

    /// Writes it to a file and runs a container with it.
    pub fn run(self) -> Result<Run<'a>> {
        let path = self.containerd.fresh_path("spec");
        std::fs::write(&path, self.value.to_string()).with_context(|| format!("writing {}", path.display()))?;
        Ok(Run::config(self.containerd, &path.display().to_string(), &self.id))
    }
}
