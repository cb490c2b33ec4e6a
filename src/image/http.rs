//! Fetching a picture from an `http://` or `https://` address that the user typed. The only network access of the program.

use std::time::Duration;

use ureq::{Agent, Error as HttpError, Timeout};

use super::source::{MAX_FILE_BYTES, too_large};
use crate::error::{Error, Result};

/// How long and how much. A struct, so that tests need not wait.
struct Limits {
    max_bytes: u64,
    max_redirects: u32,
    /// Until the connection stands: name, TCP and TLS.
    connect: Duration,
    /// Without a single byte, before the answer or within it.
    silence: Duration,
    /// For everything.
    total: Duration,
}

const LIMITS: Limits = Limits {
    max_bytes: MAX_FILE_BYTES,
    max_redirects: 5,
    connect: Duration::from_secs(10),
    silence: Duration::from_secs(30),
    total: Duration::from_secs(600),
};

/// The bytes at `url`. The connection is direct, whatever proxy the environment names; https does not lead to http.
///
/// Errors (kind image, without the address): it is none, no connection, another status than success, more than 5 redirects,
/// 30 seconds without a byte, 10 minutes in all, more than 1 GiB. Cost: the bytes once.
pub(super) fn fetch(url: &str) -> Result<Vec<u8>> {
    fetch_within(url, &LIMITS)
}

fn fetch_within(url: &str, limits: &Limits) -> Result<Vec<u8>> {
    let config = Agent::config_builder()
        .proxy(None)
        .user_agent(concat!("qvl/", env!("CARGO_PKG_VERSION")))
        .https_only(url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:")))
        .max_redirects(limits.max_redirects)
        .http_status_as_error(false)
        .timeout_connect(Some(limits.connect))
        .timeout_per_read(Some(limits.silence))
        .timeout_global(Some(limits.total))
        .build();
    let failed = |e| explain(e, limits);
    let mut response = config.new_agent().get(escaped(url)).call().map_err(failed)?;
    let status = response.status();
    if !status.is_success() {
        return Err(Error::image(format!("the server answers {status}, not with a picture")));
    }
    if response.body().content_length().is_some_and(|n| n > limits.max_bytes) {
        return Err(too_large(limits.max_bytes));
    }
    response.body_mut().with_config().limit(limits.max_bytes).read_to_vec().map_err(failed)
}

/// `url` with what may stand in a browser's address line, but not in a request, as `%XX`: spaces, controls, non-ASCII.
fn escaped(url: &str) -> String {
    let escape = |b: u8| if b.is_ascii_graphic() { char::from(b).to_string() } else { format!("%{b:02X}") };
    url.bytes().map(escape).collect()
}

/// The error in the user's words.
fn explain(error: HttpError, limits: &Limits) -> Error {
    let seconds = |limit: Duration| format!("{} s", limit.as_secs_f32());
    match error {
        HttpError::Timeout(Timeout::Connect | Timeout::Resolve) => {
            Error::image(format!("no connection within {}", seconds(limits.connect)))
        }
        HttpError::Timeout(Timeout::PerRead) => {
            Error::image(format!("the server sent nothing for {}", seconds(limits.silence)))
        }
        HttpError::Timeout(_) => Error::image(format!("it takes longer than {}", seconds(limits.total))),
        HttpError::TooManyRedirects => Error::image(format!("more than {} redirects", limits.max_redirects)),
        HttpError::RequireHttpsOnly(_) => Error::image("it redirects from https to http, which is not followed"),
        HttpError::HostNotFound => Error::image("no such host, or no network"),
        HttpError::BodyExceedsLimit(_) => too_large(limits.max_bytes),
        HttpError::BadUri(_) | HttpError::Http(_) => Error::image("not a valid address").because(error),
        HttpError::Io(e) => Error::image("cannot fetch the picture").because(e),
        e => Error::image("cannot fetch the picture").because(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Instant;

    /// Large against a test's wait for a thread, small against a person's patience.
    const SILENCE: Duration = Duration::from_millis(300);

    /// Answers one request with these bytes, then says nothing until the client leaves. Returns the address.
    fn server(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/a.png", listener.local_addr().expect("an address"));
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("is called");
            let mut request = [0; 4096];
            let n = stream.read(&mut request).expect("is asked");
            assert!(request[..n].starts_with(b"GET /a.png HTTP/1.1\r\n"));
            stream.write_all(answer).expect("is heard");
            // Until the client hangs up.
            let _ = stream.read(&mut request);
        });
        url
    }

    fn quick() -> Limits {
        Limits { max_bytes: 10, silence: SILENCE, total: 4 * SILENCE, ..LIMITS }
    }

    fn refused(answer: &'static [u8], part: &str) {
        let start = Instant::now();
        let error = fetch_within(&server(answer), &quick()).expect_err("must be refused");
        assert_eq!(error.kind().exit_code(), 4);
        assert!(error.to_string().contains(part), "{error}");
        assert!(start.elapsed() < 20 * SILENCE, "{error}: after {:?}", start.elapsed());
    }

    #[test]
    fn bytes_come_as_they_were_sent() {
        let get = |answer| fetch_within(&server(answer), &quick()).expect("is fetched");
        assert_eq!(get(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), b"hello");
        assert_eq!(get(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), b"hello");
        assert_eq!(get(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhellohello"), b"hellohello");
        assert_eq!(get(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), b"");
    }

    #[test]
    fn a_stalled_server_is_left() {
        refused(b"", "sent nothing for 0.3 s");
        refused(b"HTTP/1.1 200 OK\r\nContent-Le", "sent nothing for 0.3 s");
        refused(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "sent nothing for 0.3 s");
    }

    #[test]
    fn too_much_is_refused() {
        refused(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello hello", "larger than 10 bytes");
        refused(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello hello", "larger than 10 bytes");
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        refused(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", "500 Internal Server Error");
        refused(b"HTTP/1.1 304 Not Modified\r\n\r\n", "304 Not Modified");
        refused(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "cannot fetch the picture");
        for url in ["http://", "http:///a.png", "http://a:b:c/", "http://[::1/", "http://127.0.0.1:99999/"] {
            assert!(fetch_within(url, &quick()).is_err(), "{url}");
        }
    }

    #[test]
    fn addresses_are_escaped_as_browsers_do() {
        assert_eq!(escaped("http://a/图 1%20.png?b=c#d"), "http://a/%E5%9B%BE%201%20.png?b=c#d");
    }
}
