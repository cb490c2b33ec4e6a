//! Pictures from `http://`: a small server on this machine answers well, badly, or not at all. (What must wait for a
//! timeout is tested where timeouts can be made short, in `image::http`.)

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::programs::{Ran, run};
use crate::sources::{among_pictures, pixels, turned};

/// Counts what it is asked for.
struct Server {
    address: String,
    n_requests: Arc<AtomicUsize>,
}

impl Server {
    /// Answers every request for a path.
    fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let n_requests = Arc::new(AtomicUsize::new(0));
        let counter = n_requests.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                counter.fetch_add(1, Ordering::Relaxed);
                let path = request[0].split(' ').nth(1).unwrap();
                assert!(request.iter().any(|line| line.to_lowercase().starts_with("user-agent: qvl/")), "{request:?}");
                // The client may have enough before the end.
                let _ = stream.write_all(&answer(path));
            }
        });
        Server { address, n_requests }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    fn n_requests(&self) -> usize {
        self.n_requests.load(Ordering::Relaxed)
    }
}

fn answer(path: &str) -> Vec<u8> {
    let with_body = |status: &str, body: &[u8], n_bytes: usize| {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {n_bytes}\r\nConnection: close\r\n\r\n");
        [head.as_bytes(), body].concat()
    };
    let redirect = |to: &str| {
        format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into_bytes()
    };
    match path {
        "/turned.jpg" | "/%E5%9B%BE.jpg?size=1%202" => with_body("200 OK", &turned(), turned().len()),
        "/moved" => redirect("/turned.jpg"),
        "/loop" => redirect("/loop"),
        "/away" => redirect("file:///etc/hostname"),
        "/page" => with_body("200 OK", b"<!DOCTYPE html><p>sign in", 25),
        "/cut" => with_body("200 OK", &turned()[..100], turned().len()),
        "/huge" => with_body("200 OK", b"", 1 << 40),
        _ => with_body("404 Not Found", b"<p>none", 7),
    }
}

#[test]
fn a_picture_is_fetched() {
    let server = Server::start();
    let expect = pixels(among_pictures("trace").args(["-i", "turned.jpg"]));
    for path in ["/turned.jpg", "/turned.jpg#fragment", "/moved", "/图.jpg?size=1 2"] {
        let mut command = among_pictures("trace");
        // A proxy that is not there: connections are direct.
        command.env("http_proxy", "http://127.0.0.1:1").env("ALL_PROXY", "http://127.0.0.1:1");
        assert!(pixels(command.args(["-i", &server.url(path)])) == expect, "{path}");
    }
    assert_eq!(server.n_requests(), 5);
}

#[test]
fn bad_answers_are_named() {
    let server = Server::start();
    let ask = |url: &str| -> Ran { run(among_pictures("ask").args(["-n", "1", "-i", url, "?"])) };
    let fails = |path: &str, part: &str| {
        let url = server.url(path);
        ask(&url).fails(4, &format!("{url}: {part}"));
    };
    fails("/none", "the server answers 404 Not Found");
    fails("/loop", "more than 5 redirects");
    fails("/away", "");
    fails("/page", "this is a web page");
    fails("/cut", "cannot fetch the picture");
    fails("/huge", "larger than 1 GiB");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    ask(&format!("http://{closed}/a.png")).fails(4, "cannot fetch the picture");
    // No TLS there.
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let https = format!("https://{}/a.png", plain.local_addr().unwrap());
    std::thread::spawn(move || plain.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    ask(&https).fails(4, "cannot fetch the picture");
    ask("http://").fails(4, "not a valid address");
}

/// Only an argument is fetched, and only when everything else is right.
#[test]
fn nothing_else_is_fetched() {
    let server = Server::start();
    let url = server.url("/turned.jpg");
    run(among_pictures("ask").args(["--raw", &format!("<img>{url}</img>?")])).fails(4, "cannot read the picture");
    run(among_pictures("ask").args(["-i", &url, "-c", "1", "?"])).fails(2, "the context holds 1");
    run(among_pictures("ask").args(["-n", "0", &url])).ok();
    assert_eq!(server.n_requests(), 0);
}
