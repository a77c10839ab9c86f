//! Images whose modules are layers as they are, and containers made of them through containerd's API: `ctr` makes none of an
//! image whose config it doesn't know.
use super::NAMESPACE;
use super::containerd::Containerd;
use super::grpc::Grpc;
use super::spec::Spec;
use anyhow::{Context, Result, anyhow};
use prost::Message;
use std::path::PathBuf;

impl Containerd {
    /// The reference of an artifact of `test_images`; all of them are imported when the first one is asked for.
    pub fn artifact(&self, name: &str) -> Result<String> {
        self.artifact_in(NAMESPACE, name)
    }

    /// The same in another namespace of containerd's; the first one that is asked for is the only one.
    pub fn artifact_in(&self, namespace: &str, name: &str) -> Result<String> {
        let import = || {
            for artifact in test_images::artifacts()? {
                let archive = artifact.save(self.folder())?;
                let import = ["--namespace", namespace, "image", "import", "--all-platforms", "--no-unpack"];
                let import = self.ctr(import).arg(archive).output()?;
                // Releases of containerd differ in what they take; the test of what is not there fails.
                if import.code != 0 {
                    eprintln!("{}: {import}", artifact.name());
                }
            }
            anyhow::Ok(())
        };
        let imported = self.artifacts.get_or_init(|| import().map_err(|error| format!("{error:#}")));
        imported.as_ref().map_err(|error| anyhow!("{error}"))?;
        Ok(format!("localhost/hybrid/{name}:latest"))
    }

    /// Makes a container of an image with this spec, without a snapshot: its root is what the spec says.
    pub fn create_container(&self, id: &str, image: &str, spec: &Spec) -> Result<()> {
        let container = Container {
            id: id.to_owned(),
            image: image.to_owned(),
            runtime: Some(RuntimeName { name: self.runtime.name().to_owned() }),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(),
                value: spec.value.to_string().into_bytes(),
            }),
        };
        let request = CreateContainerRequest { container: Some(container) };
        let _: CreateContainerRequest =
            self.grpc().call("containerd.services.containers.v1.Containers/Create", &request)?;
        Ok(())
    }

    fn grpc(&self) -> Grpc {
        Grpc::new(self.address(), NAMESPACE)
    }

    /// The digest of the layer, or of the first, of an artifact.
    pub fn layer(&self, name: &str) -> Result<String> {
        let reference = self.artifact(name)?;
        let request = GetImageRequest { name: reference };
        let answer: GetImageResponse = self.grpc().call("containerd.services.images.v1.Images/Get", &request)?;
        let target = answer.image.and_then(|image| image.target).context("the image has a target")?;
        let manifest = std::fs::read(self.blob(&target.digest)).context("reading the manifest")?;
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).context("parsing the manifest")?;
        manifest["layers"][0]["digest"].as_str().map(str::to_owned).context("the manifest has a layer")
    }

    /// The file in containerd's store that has the content of this digest.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let blobs = self.folder().join("root/io.containerd.content.v1.content/blobs");
        blobs.join(digest.replace(':', "/"))
    }
}

/// Also of the answer's shape.
#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(message, optional, tag = "1")]
    container: Option<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "3")]
    image: String,
    #[prost(message, optional, tag = "4")]
    runtime: Option<RuntimeName>,
    #[prost(message, optional, tag = "5")]
    spec: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeName {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct GetImageRequest {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct GetImageResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(message, optional, tag = "3")]
    target: Option<Descriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct Descriptor {
    #[prost(string, tag = "2")]
    digest: String,
}
