//! A server with a picture at every address.

use oqvl_image_prep::{RgbImage, encode_jpeg};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// Answers every request with the same small picture, after a while.
pub(crate) fn serve(delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let picture = encode_jpeg(&RgbImage::new(20, 20, vec![90; 1200]).unwrap(), 90);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let picture = picture.clone();
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                std::thread::sleep(delay);
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    picture.len()
                );
                let _ = stream.write_all(&[head.as_bytes(), &picture].concat());
            });
        }
    });
    address
}

/// A CSV list of pictures with these captions.
pub(crate) fn csv(pictures: SocketAddr, captions: &[&str]) -> String {
    let row = |(idx, caption): (usize, &&str)| format!("http://{pictures}/{idx},{caption}\n");
    format!("url,caption\n{}", captions.iter().enumerate().map(row).collect::<String>())
}
