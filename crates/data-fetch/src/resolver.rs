//! Names to addresses, with the guard against addresses a list of URLs has no business with.
//!
//! A URL list is written by strangers: `http://169.254.169.254/…` or a name that resolves to `10.0.0.5` would
//! make the downloader read services of the machine or network it runs on (server-side request forgery). The
//! check is made on the addresses the connection will use, after resolution, so a name that changes between
//! check and use does not pass; literal addresses, which need no resolution, are checked in the URL, at every
//! redirect.

use crate::reject::Reject;
use oqvl_stage::ConfigError;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// Lookups under way at the same time. Each occupies a thread in `getaddrinfo`, some for half a minute; the runtime has 512.
const MAX_LOOKUPS: usize = 256;
/// How long an answer is used again. `getaddrinfo` does not tell the record's own time to live; few are shorter.
const CACHE_SECONDS: u64 = 300;
/// How long it is known that a name has no address: its other URLs fail without a thread each.
const FAILURE_CACHE_SECONDS: u64 = 60;
/// A lookup that fails "for the moment" is worth another attempt if it failed at once. One that took this long has been
/// tried again by the system already.
const SLOW_LOOKUP: Duration = Duration::from_secs(2);
/// Names remembered at most; above it the memory starts afresh.
const MAX_CACHED_NAMES: usize = 1 << 16;

/// Which addresses may be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressPolicy {
    /// Only addresses of the public internet.
    PublicOnly,
    /// Any address.
    Any,
}

/// A lookup that gave no address to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResolveError {
    /// The name has no address.
    #[error("the name has no address")]
    NoAddress,
    /// The name has only addresses the policy forbids.
    #[error("the name has only private addresses")]
    PrivateAddress,
}

/// The names of a hosts file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostsFile(HashMap<String, SocketAddr>);

impl HostsFile {
    /// Reads a JSON map from names to `address:port`.
    ///
    /// # Errors
    /// If the file is not there or is not such a map.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let wrong =
            |problem: String| ConfigError::new("hosts_file", format!("{}: {problem}", path.display()));
        let bytes = std::fs::read(path)
            .map_err(|error| wrong(format!("{error}; is the server it belongs to running?")))?;
        let names: HashMap<String, SocketAddr> = serde_json::from_slice(&bytes)
            .map_err(|error| wrong(format!("expected a JSON map of names to \"address:port\": {error}")))?;
        Ok(Self(names.into_iter().map(|(name, address)| (name.to_lowercase(), address)).collect()))
    }

    fn get(&self, host: &str) -> Option<SocketAddr> {
        self.0.get(host).copied()
    }
}

/// The resolver of the HTTP client.
#[derive(Debug, Clone)]
pub(crate) struct GuardedResolver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    hosts: HostsFile,
    policy: AddressPolicy,
    /// Each lookup holds a permit for as long as its thread runs, which may be longer than anybody waits for it.
    lookups: Arc<Semaphore>,
    cache: Mutex<HashMap<String, Remembered>>,
    /// Lookups that are queued or under way, each until its thread ends: whoever wants the same name waits for the same
    /// answer, and a name that hangs has one thread, not one for everybody who has given it up.
    pending: Mutex<HashMap<String, watch::Receiver<Lookup>>>,
}

type Answer = Result<Vec<SocketAddr>, ResolveError>;

/// How far a lookup has come.
#[derive(Debug, Clone)]
enum Lookup {
    /// It waits for a thread.
    Queued,
    /// The system has been asked.
    Asked,
    Answered(Answer),
}

#[derive(Debug)]
struct Remembered {
    until: Instant,
    answer: Answer,
}

impl GuardedResolver {
    /// Names in `hosts` have the address given there, whatever the policy says.
    #[must_use]
    pub(crate) fn new(hosts: HostsFile, policy: AddressPolicy) -> Self {
        let inner = Inner {
            hosts,
            policy,
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            cache: Mutex::default(),
            pending: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What can be said about a URL before a connection is made. Called for the listed URL and for every
    /// redirect.
    ///
    /// # Errors
    /// [`Reject::BadScheme`], [`Reject::BadUrl`] without a host, [`Reject::PrivateAddress`] for a literal
    /// address the policy forbids and for a port of a hosts-file name other than the one listed there.
    pub(crate) fn check_url(&self, url: &Url) -> Result<(), Reject> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Reject::BadScheme);
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(Reject::BadUrl)?;
        let literal: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        if let Some(address) = literal {
            return if self.allows(address) { Ok(()) } else { Err(Reject::PrivateAddress) };
        }
        match (self.inner.hosts.get(host), url.port()) {
            (Some(listed), Some(port)) if port != listed.port() && !self.allows(listed.ip()) => {
                Err(Reject::PrivateAddress)
            }
            _ => Ok(()),
        }
    }

    fn allows(&self, address: IpAddr) -> bool {
        self.inner.policy == AddressPolicy::Any || is_public(address)
    }

    /// Waits until the address of a host is known or has at least been asked for: what a name waits here for others has
    /// nothing to do with its host. Returns at once for hosts that need no lookup.
    pub(crate) async fn begin(&self, host: &str) {
        let is_literal = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        if !is_literal && let Err(mut lookup) = self.known_or_asked(host) {
            // Whoever answers last says so, unless the run is over.
            let _ = lookup.wait_for(|state| !matches!(state, Lookup::Queued)).await;
        }
    }

    async fn lookup(&self, host: &str) -> Answer {
        let mut lookup = match self.known_or_asked(host) {
            Ok(answer) => return answer,
            Err(lookup) => lookup,
        };
        let answered = lookup.wait_for(|state| matches!(state, Lookup::Answered(_))).await;
        match answered.as_deref() {
            Ok(Lookup::Answered(answer)) => answer.clone(),
            // A thread that cannot be started or panics has no answer.
            _ => Err(ResolveError::NoAddress),
        }
    }

    /// The answer, if it is known, or the lookup that will find it.
    fn known_or_asked(&self, host: &str) -> Result<Answer, watch::Receiver<Lookup>> {
        let host = host.to_lowercase();
        if let Some(address) = self.inner.hosts.get(&host) {
            return Ok(Ok(vec![address]));
        }
        if let Some(answer) = self.cached(&host) {
            return Ok(answer);
        }
        let mut pending = self.pending();
        if let Some(lookup) = pending.get(&host) {
            return Err(lookup.clone());
        }
        let (sender, lookup) = watch::channel(Lookup::Queued);
        pending.insert(host.clone(), lookup.clone());
        let resolver = self.clone();
        tokio::spawn(async move { resolver.ask(host, sender).await });
        Err(lookup)
    }

    /// Asks the system when it is the name's turn, unless nobody waits for it any more.
    async fn ask(self, host: String, sender: watch::Sender<Lookup>) {
        let permit = Arc::clone(&self.inner.lookups).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        {
            let mut pending = self.pending();
            // One receiver is the table's.
            if sender.receiver_count() == 1 {
                pending.remove(&host);
                return;
            }
        }
        sender.send_replace(Lookup::Asked);
        let resolver = self.clone();
        let name = host.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            resolver.ask_system(&name)
        });
        let answer = asked.await.unwrap_or(Err(ResolveError::NoAddress));
        self.pending().remove(&host);
        sender.send_replace(Lookup::Answered(answer));
    }

    /// Blocks. An answer that comes when nobody waits any more is remembered all the same.
    fn ask_system(&self, host: &str) -> Answer {
        let started = Instant::now();
        let found = (host, 0).to_socket_addrs();
        let is_hasty = found.as_ref().is_err_and(is_temporary) && started.elapsed() < SLOW_LOOKUP;
        let answer = found.map_err(|_| ResolveError::NoAddress).and_then(|found| self.allowed(found));
        if !is_hasty {
            self.remember(host.to_owned(), answer.clone());
        }
        answer
    }

    fn allowed(&self, found: impl Iterator<Item = SocketAddr>) -> Answer {
        let (allowed, forbidden): (Vec<_>, Vec<_>) = found.partition(|address| self.allows(address.ip()));
        match (allowed.is_empty(), forbidden.is_empty()) {
            (false, _) => Ok(allowed),
            (true, true) => Err(ResolveError::NoAddress),
            (true, false) => Err(ResolveError::PrivateAddress),
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Lookup>>> {
        self.inner.pending.lock().expect("no thread panics while it holds the table")
    }

    fn cached(&self, host: &str) -> Option<Answer> {
        let cache = self.inner.cache.lock().expect("no thread panics while it holds the cache");
        cache.get(host).filter(|remembered| remembered.until > Instant::now()).map(|it| it.answer.clone())
    }

    fn remember(&self, host: String, answer: Answer) {
        let seconds = if answer.is_ok() { CACHE_SECONDS } else { FAILURE_CACHE_SECONDS };
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut cache = self.inner.cache.lock().expect("no thread panics while it holds the cache");
        if cache.len() >= MAX_CACHED_NAMES {
            cache.clear();
        }
        cache.insert(host, Remembered { until, answer });
    }
}

/// Whether the system says that asking again may help (`EAI_AGAIN`), for which the library has no more than the words of
/// glibc and musl, or lacks something here, such as file descriptors.
fn is_temporary(error: &std::io::Error) -> bool {
    let text = error.to_string().to_lowercase();
    error.raw_os_error().is_some() || text.contains("temporary failure") || text.contains("try again")
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let addresses = resolver.lookup(name.as_str()).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is on the public internet, after the IANA special-purpose registries
/// (RFC 6890 and its successors). IPv6 addresses that carry an IPv4 address are judged by it.
#[must_use]
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// Looks public, and answers every virtual machine of Azure from inside its host, with its certificates and settings
/// (Microsoft, "What is IP address 168.63.129.16?"). Other clouds use link-local addresses for this.
const AZURE_WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0 // this network
        || address == AZURE_WIRE_SERVER
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || (a == 100 && (64..128).contains(&b)) // carrier-grade NAT, RFC 6598
        || (a == 192 && b == 0 && c == 0) // protocol assignments
        || address.is_documentation()
        || (a == 198 && (18..20).contains(&b)) // benchmarks, RFC 2544
        || a >= 224) // multicast, reserved, broadcast
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let v4_from = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match segments {
        // Unspecified, loopback, IPv4-compatible and IPv4-mapped.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => high != 0 && is_public_v4(v4_from(high, low)),
        // NAT64, RFC 6052; its local-use prefix, RFC 8215, is private.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(v4_from(high, low)),
        [0x64, 0xff9b, ..] => false,
        // 6to4, RFC 3056.
        [0x2002, high, low, ..] => is_public_v4(v4_from(high, low)),
        // Protocol assignments (Teredo, ORCHID, benchmarks) and documentation.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        // Global unicast is 2000::/3; all else is local, multicast or unassigned.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn hosts() -> HostsFile {
        HostsFile([("a.test".to_owned(), "127.0.0.1:4000".parse().unwrap())].into())
    }

    #[test]
    fn special_addresses_are_not_public() {
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.0.9",
            "168.63.129.16",
            "::ffff:168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "3fff::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn ordinary_addresses_are_public() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "100.128.0.1",
            "168.63.129.15",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.254",
            "2606:4700::1111",
            "2a00:1450::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::1",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn urls_are_checked_before_any_connection() {
        let resolver = GuardedResolver::new(hosts(), AddressPolicy::PublicOnly);
        for (text, expected) in [
            ("http://example.org/a.jpg", Ok(())),
            ("https://8.8.8.8/a.jpg", Ok(())),
            ("ftp://example.org/a.jpg", Err(Reject::BadScheme)),
            ("file:///etc/passwd", Err(Reject::BadScheme)),
            ("data:image/png;base64,AAAA", Err(Reject::BadScheme)),
            ("http://127.0.0.1/", Err(Reject::PrivateAddress)),
            // The other spellings of 127.0.0.1.
            ("http://2130706433/", Err(Reject::PrivateAddress)),
            ("http://0x7f.1/", Err(Reject::PrivateAddress)),
            ("http://0177.0.0.1/", Err(Reject::PrivateAddress)),
            ("http://[::1]/", Err(Reject::PrivateAddress)),
            ("http://[::ffff:7f00:1]:80/", Err(Reject::PrivateAddress)),
            ("http://169.254.169.254/latest/meta-data", Err(Reject::PrivateAddress)),
            ("http://A.test/x", Ok(())),
            ("http://a.test:4000/x", Ok(())),
            // A listed name opens one port, not the whole machine.
            ("http://a.test:22/x", Err(Reject::PrivateAddress)),
        ] {
            assert_eq!(resolver.check_url(&url(text)), expected, "{text}");
        }
        let open = GuardedResolver::new(HostsFile::default(), AddressPolicy::Any);
        assert_eq!(open.check_url(&url("http://127.0.0.1/")), Ok(()));
        assert_eq!(open.check_url(&url("ftp://127.0.0.1/")), Err(Reject::BadScheme));
    }

    #[tokio::test]
    async fn names_are_checked_after_resolution() {
        let resolver = GuardedResolver::new(hosts(), AddressPolicy::PublicOnly);
        assert_eq!(resolver.lookup("A.Test").await, Ok(vec!["127.0.0.1:4000".parse().unwrap()]));
        // `localhost` is in every /etc/hosts.
        assert_eq!(resolver.lookup("localhost").await, Err(ResolveError::PrivateAddress));
        let open = GuardedResolver::new(HostsFile::default(), AddressPolicy::Any);
        assert!(open.lookup("localhost").await.unwrap().iter().all(|address| address.ip().is_loopback()));
        assert!(open.cached("localhost").is_some());
        // A label of 64 letters is one too long for DNS: the lookup fails without asking anybody.
        let long = "a".repeat(64);
        assert_eq!(open.lookup(&long).await, Err(ResolveError::NoAddress));
        assert_eq!(open.cached(&long), Some(Err(ResolveError::NoAddress)), "nor does the next one ask");
        assert_eq!(resolver.cached("localhost"), Some(Err(ResolveError::PrivateAddress)));
    }

    #[tokio::test]
    async fn one_lookup_serves_all_who_wait_for_it() {
        let resolver = GuardedResolver::new(HostsFile::default(), AddressPolicy::Any);
        // No lookup can begin: all wait.
        let permits = resolver.inner.lookups.acquire_many(MAX_LOOKUPS as u32).await.unwrap();
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let resolver = resolver.clone();
                tokio::spawn(async move { resolver.lookup("localhost").await })
            })
            .collect();
        // One that is not waited for any more does not stop the others.
        while resolver.pending().is_empty() {
            tokio::task::yield_now().await;
        }
        waiting[0].abort();
        assert_eq!(resolver.pending().len(), 1);
        drop(permits);
        for (idx, task) in waiting.into_iter().enumerate() {
            assert!(task.await.is_ok_and(|answer| answer.is_ok()) || idx == 0);
        }
        assert!(resolver.pending().is_empty());
        assert_eq!(resolver.inner.lookups.available_permits(), MAX_LOOKUPS);
    }

    async fn settled(resolver: &GuardedResolver) {
        while !resolver.pending().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_name_that_hangs_has_one_thread() {
        let resolver = GuardedResolver::new(HostsFile::default(), AddressPolicy::Any);
        let permits = resolver.inner.lookups.acquire_many(MAX_LOOKUPS as u32 - 1).await.unwrap();
        // Stands for a name whose lookup is under way: the one who wanted it has given up.
        let (hanging, lookup) = watch::channel(Lookup::Asked);
        resolver.pending().insert("hanging.test".to_owned(), lookup);
        let short = Duration::from_millis(20);
        for _ in 0..3 {
            assert!(tokio::time::timeout(short, resolver.lookup("hanging.test")).await.is_err());
            assert_eq!(resolver.pending().len(), 1, "it goes when its thread ends");
            assert_eq!(resolver.inner.lookups.available_permits(), 1);
        }
        // Its URLs have nothing to wait for before they try to connect.
        resolver.begin("hanging.test").await;
        hanging.send_replace(Lookup::Answered(Err(ResolveError::NoAddress)));
        assert_eq!(resolver.lookup("hanging.test").await, Err(ResolveError::NoAddress));
        drop(permits);
    }

    #[tokio::test]
    async fn the_wait_for_a_thread_is_not_that_for_an_answer() {
        let resolver = GuardedResolver::new(hosts(), AddressPolicy::Any);
        let permits = resolver.inner.lookups.acquire_many(MAX_LOOKUPS as u32).await.unwrap();
        for host in ["a.test", "127.0.0.1", "[::1]"] {
            resolver.begin(host).await;
        }
        let short = Duration::from_millis(20);
        assert!(tokio::time::timeout(short, resolver.begin("localhost")).await.is_err());
        drop(permits);
        // Nobody waits for it any more, so nobody is asked.
        settled(&resolver).await;
        assert!(resolver.cached("localhost").is_none());
        resolver.begin("localhost").await;
        settled(&resolver).await;
        assert!(resolver.cached("localhost").is_some_and(|answer| answer.is_ok()));
    }

    #[test]
    fn failures_of_the_moment_are_told_apart() {
        for (text, expected) in [
            ("failed to lookup address information: Temporary failure in name resolution", true),
            ("failed to lookup address information: Try again", true),
            ("failed to lookup address information: Name or service not known", false),
        ] {
            assert_eq!(is_temporary(&std::io::Error::other(text)), expected, "{text}");
        }
    }

    #[test]
    fn a_hosts_file_must_be_a_map_of_socket_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts.local.json");
        assert!(HostsFile::read(&path).unwrap_err().to_string().contains("server"));
        for wrong in ["", "[]", "{\"a\": 1}", "{\"a\": \"127.0.0.1\"}"] {
            oqvl_shard_io::write_atomic(&path, wrong.as_bytes()).unwrap();
            let error = HostsFile::read(&path).unwrap_err();
            assert!(
                error.key() == "hosts_file" && error.to_string().contains("a JSON map"),
                "{wrong}: {error}"
            );
        }
        oqvl_shard_io::write_atomic(&path, b"{\"A.test\": \"127.0.0.1:4000\"}").unwrap();
        assert_eq!(HostsFile::read(&path).unwrap(), hosts());
    }
}
