//! Connections are used again, and HTTP/2 is spoken where the server speaks it.

use crate::server::Reply;
use crate::world::{World, jpeg};
use oqvl_shard_io::write_atomic;
use serde_json::json;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate for `a.test` by nobody, and its key, made by
/// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj /CN=a.test
/// -addext subjectAltName=DNS:a.test -addext basicConstraints=critical,CA:FALSE`.
const CERTIFICATE: &str = include_str!("../fixtures/self_signed_certificate.pem");
const KEY: &str = include_str!("../fixtures/self_signed_key.pem");

/// A world whose host `a.test` is at `address`.
fn world_at(address: SocketAddr, scheme: &str, num_urls: usize) -> World {
    let urls: Vec<String> = (0..num_urls).map(|idx| format!("{scheme}://a.test/{idx}")).collect();
    let world = World::new(&urls, |_| Reply::status(404));
    let hosts = json!({"a.test": address.to_string()}).to_string();
    write_atomic(&world.dir.path().join("hosts.local.json"), hosts.as_bytes()).unwrap();
    world
}

#[test]
fn http_1_connections_are_kept() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let num_connections = Arc::new(AtomicUsize::new(0));
    let (counted, image) = (Arc::clone(&num_connections), jpeg(20, 20, 1));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
            let (mut stream, image) = (stream.unwrap(), image.clone());
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while let Some(Ok(line)) = lines.next() {
                    if line.is_empty() {
                        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", image.len());
                        let _ = stream.write_all(&[head.as_bytes(), &image].concat());
                    }
                }
            });
        }
    });
    let mut world = world_at(address, "http", 60);
    world.config.per_host_in_flight = 2;
    assert_eq!(world.run().tally.kept, 60);
    let num_connections = num_connections.load(Ordering::Relaxed);
    assert!(num_connections <= 6, "{num_connections} connections for 60 requests, two at a time");
}

/// Serves `image` over TLS to clients that agree on HTTP/2, and to no others. Returns its address and the number of its
/// connections.
fn http_2_server(image: Vec<u8>) -> (SocketAddr, Arc<AtomicUsize>) {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let num_connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&num_connections);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, image) = (acceptor.clone(), image.clone());
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        let mut body = respond.send_response(http::Response::new(()), false).unwrap();
                        body.send_data(image.clone().into(), true).unwrap();
                    }
                });
            }
        });
    });
    (address, num_connections)
}

#[test]
fn http_2_is_negotiated_and_one_connection_serves_a_host() {
    let (address, num_connections) = http_2_server(jpeg(20, 20, 1));
    let mut world = world_at(address, "https", 60);
    // The certificate is nobody's: without being told to, we do not trust it.
    assert_eq!(world.run().tally.rejected["tls-failed"], 60);
    std::fs::remove_dir_all(world.out_dir()).unwrap();

    num_connections.store(0, Ordering::Relaxed);
    write_atomic(&world.dir.path().join("ca.pem"), CERTIFICATE.as_bytes()).unwrap();
    world.config.ca_file = Some("ca.pem".into());
    let report = world.run();
    assert_eq!((report.tally.kept, world.num_retries()), (60, 0));
    let num_connections = num_connections.load(Ordering::Relaxed);
    // Those that were opened before the first had agreed on HTTP/2.
    assert!(num_connections <= world.config.per_host_in_flight, "{num_connections} connections");
}
