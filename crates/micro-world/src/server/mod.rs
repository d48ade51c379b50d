//! The world over HTTP: every route of a world directory on one loopback port.
//!
//! Hosts are virtual: the server tells them apart by the `Host` header, and a *hosts file* (JSON, host to
//! socket address) tells fetchers where they are. So no URL, and no output of a later stage, ever holds a
//! port.
//!
//! The server is a thread with a single-threaded runtime: what it serves is small, and faulty answers wait
//! for their clock, not for a processor.

mod answer;
mod connection;
mod request;
#[cfg(test)]
mod tests;

use crate::error::WorldError;
use crate::records::{Answer, Route};
use crate::world_dir::{WorldDir, read_jsonl};
use oqvl_shard_io::{ShardFile, write_json_atomic};
use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

/// Connections served at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;

/// A world that is being served; dropped, it stops.
#[derive(Debug)]
pub struct WorldServer {
    address: SocketAddr,
    hosts: Vec<String>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl WorldServer {
    /// Serves the world in `dir` on `127.0.0.1`; port 0 takes any that is free. Returns once connections are
    /// taken.
    ///
    /// # Errors
    /// If the world's routes or shards cannot be read, or the port cannot be had.
    pub fn start(dir: &Path, port: u16) -> Result<WorldServer, WorldError> {
        let world = Arc::new(ServedWorld::load(&WorldDir::new(dir))?);
        let hosts = world.hosts.clone();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listen = |source| WorldError::Listen { address, source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(listen)?;
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("world-server".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, world) => {}
                        _ = stopped => {}
                    }
                });
                // Ends the connections that hang on purpose, too.
                runtime.shutdown_background();
            })
            .map_err(listen)?;
        Ok(WorldServer { address, hosts, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The virtual hosts and where they are: all at [`address`](Self::address).
    #[must_use]
    pub fn hosts(&self) -> BTreeMap<String, SocketAddr> {
        self.hosts.iter().map(|host| (host.clone(), self.address)).collect()
    }

    /// Writes the hosts file, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_hosts_file(&self, path: &Path) -> Result<(), WorldError> {
        Ok(write_json_atomic(path, &self.hosts())?)
    }

    /// Stops, and waits until the port is free.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Both are there until the first call; a thread that is gone already has stopped.
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for WorldServer {
    fn drop(&mut self) {
        self.end();
    }
}

async fn accept(listener: TcpListener, world: Arc<ServedWorld>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let world = Arc::clone(&world);
                tokio::spawn(async move {
                    connection::serve(stream, &world).await;
                    drop(place);
                });
            }
            // Most often too many open files; it passes.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

/// The routes of a world, ready to be looked up.
#[derive(Debug)]
struct ServedWorld {
    /// By host, then by path and query.
    routes: HashMap<String, HashMap<String, ServedRoute>>,
    shards: HashMap<String, ShardFile>,
    /// Sorted.
    hosts: Vec<String>,
}

/// An answer, and how often it was asked for.
#[derive(Debug)]
struct ServedRoute {
    answer: Answer,
    num_requests: AtomicU32,
}

impl ServedRoute {
    /// The number of requests before this one.
    fn count_request(&self) -> u32 {
        self.num_requests.fetch_add(1, Ordering::Relaxed)
    }
}

impl ServedWorld {
    fn load(dir: &WorldDir) -> Result<ServedWorld, WorldError> {
        let path = dir.routes();
        let wrong = |problem: String| WorldError::Routes { path: path.clone(), problem };
        let mut world = ServedWorld { routes: HashMap::new(), shards: HashMap::new(), hosts: Vec::new() };
        for Route { host, target, answer } in read_jsonl::<Route>(&path)? {
            if let Answer::Body { body, .. } = &answer {
                if body.shard.contains(['/', '\\']) {
                    return Err(wrong(format!("`{}` is not the name of a file in images", body.shard)));
                }
                if !world.shards.contains_key(&body.shard) {
                    let shard = ShardFile::open(&dir.images().join(&body.shard))?;
                    world.shards.insert(body.shard.clone(), shard);
                }
            }
            let host = host.to_ascii_lowercase();
            let served = ServedRoute { answer, num_requests: AtomicU32::new(0) };
            if world.routes.entry(host.clone()).or_default().insert(target.clone(), served).is_some() {
                return Err(wrong(format!("http://{host}{target} has two routes")));
            }
        }
        world.hosts = world.routes.keys().cloned().collect();
        world.hosts.sort();
        Ok(world)
    }

    fn route(&self, host: &str, target: &str) -> Option<&ServedRoute> {
        self.routes.get(host)?.get(target)
    }
}
