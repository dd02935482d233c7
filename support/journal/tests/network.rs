//! Syslog and JSON lines, received by real listeners and read strictly.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use nyx_journal::*;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

fn journal(outputs: &[&str]) -> Journal {
    let mut config = JournalConfig::default();
    for output in outputs {
        config.add_output(output).unwrap();
    }
    let origin = Origin {
        vm: Some("web".into()),
        ring: None,
    };
    Journal::new(&config, &origin).unwrap()
}

fn lines(journal: &Journal) -> Vec<String> {
    let entries = journal.entries(&Query::default());
    entries
        .iter()
        .map(|entry| entry.without_time().to_string())
        .collect()
}

fn say(journal: &Journal, message: &str) {
    let fields = [
        ("n".into(), 7_u64.into()),
        ("what=ever".into(), "a \"b\" \\ [c]\n".into()),
    ];
    journal.write("device", Level::Warn, message, fields.into());
}

/// A message of RFC 5424, section 6, read by its grammar.
#[derive(Debug)]
struct Message {
    priority: u8,
    time: String,
    app: String,
    pid: u32,
    id: String,
    element: String,
    params: BTreeMap<String, String>,
    text: String,
}

fn word(text: &mut &str, limit: usize) -> String {
    let (word, rest) = text.split_once(' ').unwrap();
    *text = rest;
    assert!((1..=limit).contains(&word.len()), "{word:?}");
    assert!(word.bytes().all(|b| (33..=126).contains(&b)), "{word:?}");
    word.into()
}

fn parse(message: &[u8]) -> Message {
    let mut text = std::str::from_utf8(message).unwrap();
    let text = &mut text;
    *text = text.strip_prefix('<').unwrap();
    let (priority, rest) = text.split_once('>').unwrap();
    *text = rest.strip_prefix("1 ").unwrap();
    let time = word(text, 32);
    assert!(time.ends_with('Z') && time.len() == 27, "{time}");
    time.parse::<Timestamp>().unwrap();
    let _host = word(text, 255);
    let app = word(text, 48);
    let pid = word(text, 128).parse().unwrap();
    let id = word(text, 32);
    *text = text.strip_prefix('[').unwrap();
    let (element, rest) = text.split_once(' ').unwrap();
    *text = rest;
    let mut params = BTreeMap::new();
    loop {
        let (name, rest) = text.split_once("=\"").unwrap();
        assert!((1..=32).contains(&name.len()), "{name:?}");
        assert!(
            name.bytes()
                .all(|b| (33..=126).contains(&b) && !b"=]\"".contains(&b))
        );
        let mut value = String::new();
        let mut chars = rest.chars();
        loop {
            match chars.next().unwrap() {
                '"' => break,
                '\\' => {
                    let escaped = chars.next().unwrap();
                    assert!("\"\\]".contains(escaped), "{escaped:?}");
                    value.push(escaped);
                }
                ']' => unreachable!("a bare ] in a value"),
                c => value.push(c),
            }
        }
        assert!(params.insert(name.into(), value).is_none());
        *text = chars.as_str();
        match text.split_at(1) {
            (" ", rest) => *text = rest,
            ("]", rest) => {
                *text = rest;
                break;
            }
            other => unreachable!("{other:?}"),
        }
    }
    let text = text.strip_prefix(' ').unwrap();
    let text = match text.strip_prefix('\u{feff}') {
        Some(text) => text,
        None => {
            assert!(text.is_ascii());
            text
        }
    };
    assert!(!text.chars().any(char::is_control));
    Message {
        priority: priority.parse().unwrap(),
        time,
        app,
        pid,
        id,
        element: element.into(),
        params,
        text: text.into(),
    }
}

/// What [`say`] said as the first entry, with facility `daemon`.
fn check(message: &[u8], text: &str) {
    let message = parse(message);
    assert_eq!(message.priority, 3 * 8 + 4);
    assert!(message.time.starts_with("20"));
    assert_eq!(message.app, "nyx");
    assert_eq!(message.pid, std::process::id());
    assert_eq!(message.id, "device");
    assert_eq!(message.element, "nyx@32473");
    assert_eq!(message.params["level"], "warn");
    assert_eq!(message.params["n"], "7");
    assert_eq!(message.params["what_ever"], "a \"b\" \\ [c]\\n");
    assert_eq!(message.text, text);
}

/// A frame of RFC 6587, section 3.4.1.
fn frame(stream: &mut impl Read) -> Vec<u8> {
    let mut length = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        match byte[0] {
            b' ' => break,
            digit => length.push(digit),
        }
    }
    assert_ne!(length[0], b'0');
    let length = String::from_utf8(length).unwrap().parse().unwrap();
    let mut message = vec![0; length];
    stream.read_exact(&mut message).unwrap();
    message
}

#[test]
fn syslog_over_the_local_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let journal = journal(&[&format!("syslog,address={}", path.display())]);
    say(&journal, "grüße\u{1b}");
    say(&journal, &"long ".repeat(1000));
    let mut bytes = vec![0; 65_536];
    let length = socket.recv(&mut bytes).unwrap();
    check(&bytes[..length], "grüße\\u{1b}");
    let length = socket.recv(&mut bytes).unwrap();
    assert!(length <= 8192);
    assert!(parse(&bytes[..length]).text.starts_with("long long"));
    // The service is restarted: nothing is lost.
    drop(socket);
    std::fs::remove_file(&path).unwrap();
    say(&journal, "while it is away");
    std::thread::sleep(Duration::from_millis(50));
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = socket.recv(&mut bytes).unwrap();
    check(&bytes[..length], "while it is away");
    assert!(journal.flush(PATIENCE));
    let said = lines(&journal);
    let failures: Vec<_> = said
        .iter()
        .filter(|line| line.contains("syslog0"))
        .collect();
    assert!(
        failures[0].starts_with("[WARN] journal: output syslog0 does not work: "),
        "{said:?}"
    );
    assert_eq!(
        failures[1],
        "[INFO] journal: output syslog0 works again dropped=0"
    );
    assert_eq!(failures.len(), 2);
}

#[test]
fn syslog_over_udp() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = socket.local_addr().unwrap();
    let journal = journal(&[&format!(
        "syslog,transport=udp,address={address},facility=local7,app-name=vmm"
    )]);
    say(&journal, "one");
    say(&journal, &"ö".repeat(4000));
    let mut bytes = vec![0; 65_536];
    let length = socket.recv(&mut bytes).unwrap();
    let message = parse(&bytes[..length]);
    assert_eq!(
        (message.priority, &*message.app, &*message.text),
        (23 * 8 + 4, "vmm", "one")
    );
    let length = socket.recv(&mut bytes).unwrap();
    assert!((2000..=2048).contains(&length), "{length}");
    assert!(parse(&bytes[..length]).text.chars().all(|c| c == 'ö'));
}

#[test]
fn syslog_over_tcp_is_connected_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let journal = journal(&[&format!("syslog,transport=tcp,address={address}")]);
    for n in 0..3 {
        say(&journal, &format!("first {n}"));
        say(&journal, &format!("second {n}"));
        let (mut stream, _) = listener.accept().unwrap();
        check(&frame(&mut stream), &format!("first {n}"));
        check(&frame(&mut stream), &format!("second {n}"));
        assert!(journal.flush(PATIENCE));
    }
    assert_eq!(
        journal
            .stats()
            .outputs
            .get("syslog0")
            .unwrap()
            .written
            .get(),
        6
    );
    assert_eq!(
        journal
            .stats()
            .outputs
            .get("syslog0")
            .unwrap()
            .dropped
            .get(),
        0
    );
}

#[test]
fn json_lines_over_tcp_and_udp() {
    let listener = TcpListener::bind("[::1]:0")
        .or_else(|_| TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let journal = journal(&[
        &format!("network,address={}", listener.local_addr().unwrap()),
        &format!(
            "network,transport=udp,level=error,address={}",
            socket.local_addr().unwrap()
        ),
    ]);
    say(&journal, "to the stream only");
    journal.write("vm", Level::Fatal, "to both", Fields::new());
    let (stream, _) = listener.accept().unwrap();
    let mut stream = BufReader::new(stream).lines();
    let mut next =
        || serde_json::from_str::<serde_json::Value>(&stream.next().unwrap().unwrap()).unwrap();
    let first = next();
    assert_eq!(first["vm"], "web");
    assert_eq!(first["level"], "warn");
    assert_eq!(first["fields"]["what=ever"], "a \"b\" \\ [c]\n");
    let own = &journal.entries(&Query::default())[0];
    assert_eq!(serde_json::from_value::<Entry>(first).unwrap(), *own);
    assert_eq!(next()["message"], "to both");
    let mut bytes = vec![0; 65_536];
    let length = socket.recv(&mut bytes).unwrap();
    let datagram: serde_json::Value = serde_json::from_slice(&bytes[..length]).unwrap();
    assert_eq!(datagram["message"], "to both");
    assert_eq!(bytes[length - 1], b'\n');
}

#[test]
fn a_peer_that_is_away_is_said_once_and_tried_again() {
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let journal = journal(&[&format!("network,address={address}")]);
    for _ in 0..10 {
        say(&journal, "waits");
        std::thread::sleep(Duration::from_millis(20));
    }
    let listener = TcpListener::bind(address).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let mut stream = BufReader::new(stream).lines();
    for n in 1..=10 {
        let line: serde_json::Value =
            serde_json::from_str(&stream.next().unwrap().unwrap()).unwrap();
        let own = &journal.entries(&Query {
            component: Some("device".parse().unwrap()),
            ..Query::default()
        })[n - 1];
        assert_eq!(line["sequence"], own.sequence);
    }
    assert!(journal.flush(PATIENCE));
    let said: Vec<_> = lines(&journal)
        .into_iter()
        .filter(|line| line.contains("network0"))
        .collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(
        said[0],
        format!(
            "[WARN] journal: output network0 does not work: tcp {address}: Connection refused (os error 111); entries wait, and the oldest are dropped when too many do"
        )
    );
    assert_eq!(
        said[1],
        "[INFO] journal: output network0 works again dropped=0"
    );
}

#[test]
fn datagrams_that_nobody_takes_are_no_failure() {
    let address = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let journal = journal(&[&format!("network,transport=udp,address={address}")]);
    for _ in 0..5 {
        say(&journal, "to nobody");
        assert!(journal.flush(PATIENCE));
    }
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    say(&journal, "to somebody");
    let mut bytes = vec![0; 65_536];
    let length = socket.recv(&mut bytes).unwrap();
    let line: Entry = serde_json::from_slice(&bytes[..length]).unwrap();
    assert_eq!(line.message, "to somebody");
    assert_eq!(
        journal
            .stats()
            .outputs
            .get("network0")
            .unwrap()
            .failures
            .get(),
        0
    );
}

#[test]
fn a_peer_that_never_reads_holds_up_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let journal = journal(&[&format!(
        "network,address={}",
        listener.local_addr().unwrap()
    )]);
    let (sender, receiver) = std::sync::mpsc::channel();
    journal.add_callback(Level::Error, move |entry| {
        sender.send(entry.sequence).unwrap()
    });
    say(&journal, "first");
    let (stream, _) = listener.accept().unwrap();
    let message = "x".repeat(4000);
    let mut slowest = Duration::ZERO;
    for n in 0..20_000 {
        let level = if n % 1000 == 0 {
            Level::Error
        } else {
            Level::Info
        };
        let start = Instant::now();
        journal.write("guest", level, &message, Fields::new());
        slowest = slowest.max(start.elapsed());
    }
    // Far from what a blocking write of 80 MB to nobody would take, which is for ever.
    assert!(slowest < PATIENCE, "{slowest:?}");
    for n in 0..20 {
        assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), 2 + 1000 * n);
    }
    let stats = journal.stats().outputs.get("network0").unwrap();
    assert!(stats.dropped.get() > 1000, "{stats:?}");
    assert!(!journal.flush(Duration::from_millis(100)));
    // The peer reads at last: what was lost is said where it was lost.
    let reader = std::thread::spawn(move || {
        let mut notices = 0;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        while stream.read_line(&mut line).unwrap() > 0 {
            let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
            notices += entry["fields"]["dropped"].as_u64().unwrap_or(0);
            line.clear();
        }
        notices
    });
    assert!(journal.flush(PATIENCE));
    assert_eq!(stats.written.get() + stats.dropped.get(), 20_001);
    assert!(journal.close(PATIENCE));
    assert_eq!(reader.join().unwrap(), stats.dropped.get());
}

#[test]
fn closing_does_not_wait_for_a_peer_that_never_reads() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let journal = journal(&[&format!(
        "network,address={}",
        listener.local_addr().unwrap()
    )]);
    for _ in 0..8000 {
        journal.write("guest", Level::Info, &"x".repeat(4000), Fields::new());
    }
    let start = Instant::now();
    journal.close(Duration::from_secs(2));
    assert!(start.elapsed() < PATIENCE);
}

#[cfg(feature = "tls")]
mod tls {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
    use std::net::TcpStream;
    use std::path::PathBuf;
    use std::sync::Arc;

    struct Authority {
        folder: tempfile::TempDir,
        issuer: CertifiedIssuer<'static, KeyPair>,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let issuer =
                CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
            Self { folder, issuer }
        }

        fn issue(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new([name.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
            std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
            let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            (certificate.der().clone(), private)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn server(&self, name: &str, asks_for_client: bool) -> Arc<ServerConfig> {
            let (certificate, key) = self.issue(name);
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .unwrap();
            let builder = if asks_for_client {
                let mut roots = RootCertStore::empty();
                roots.add(self.issuer.der().clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.unwrap())
            } else {
                builder.with_no_client_auth()
            };
            Arc::new(builder.with_single_cert(vec![certificate], key).unwrap())
        }
    }

    fn accept(
        listener: &TcpListener,
        config: &Arc<ServerConfig>,
    ) -> StreamOwned<ServerConnection, TcpStream> {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // What is sent must be there when the next entry is written.
        stream.set_nodelay(true).unwrap();
        StreamOwned::new(ServerConnection::new(Arc::clone(config)).unwrap(), stream)
    }

    #[test]
    fn syslog_over_tls() {
        let authority = Authority::new();
        let config = authority.server("localhost", false);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ca = authority.path("ca.pem");
        let output = format!(
            "syslog,transport=tls,address=localhost:{port},ca={}",
            ca.display()
        );
        let journal = journal(&[&output]);
        let mut half_open = Vec::new();
        for n in 0..2 {
            say(&journal, &format!("secret {n}"));
            let mut stream = accept(&listener, &config);
            check(&frame(&mut stream), &format!("secret {n}"));
            let flushed = journal.flush(PATIENCE);
            assert!(flushed, "{:?}", lines(&journal));
            if n == 1 {
                say(&journal, &"long".repeat(900));
                assert!(parse(&frame(&mut stream)).text.ends_with("longlong"));
                // RFC 5425, section 4.4: closed in good order.
                let closing = journal.clone();
                let closer = std::thread::spawn(move || closing.close(PATIENCE));
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
                assert!(closer.join().unwrap());
            } else {
                // Closed for TLS only.
                stream.conn.send_close_notify();
                stream.flush().unwrap();
                half_open.push(stream);
            }
        }
        assert_eq!(
            journal
                .stats()
                .outputs
                .get("syslog0")
                .unwrap()
                .failures
                .get(),
            0
        );
    }

    #[test]
    fn both_ends_show_certificates() {
        let authority = Authority::new();
        let config = authority.server("localhost", true);
        authority.issue("client");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let path = |name: &str| authority.path(name).display().to_string();
        let journal = journal(&[&format!(
            "syslog,transport=tls,address=127.0.0.1:{port},server-name=localhost,ca={},cert={},key={}",
            path("ca.pem"),
            path("client.pem"),
            path("client.key")
        )]);
        say(&journal, "mutual");
        let mut stream = accept(&listener, &config);
        check(&frame(&mut stream), "mutual");
        assert!(stream.conn.peer_certificates().is_some());
    }

    #[test]
    fn a_server_with_a_wrong_name_or_authority_gets_nothing() {
        let authority = Authority::new();
        let other = Authority::new();
        let ca = authority.path("ca.pem");
        for config in [
            authority.server("elsewhere", false),
            other.server("localhost", false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let output = format!(
                "syslog,transport=tls,address=localhost:{port},ca={}",
                ca.display()
            );
            let journal = journal(&[&output]);
            say(&journal, "secret");
            let mut stream = accept(&listener, &config);
            assert!(stream.read(&mut [0]).map_or(true, |count| count == 0));
            let deadline = Instant::now() + PATIENCE;
            while lines(&journal).len() < 2 {
                assert!(Instant::now() < deadline);
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(
                lines(&journal)[1].contains("invalid peer certificate"),
                "{:?}",
                lines(&journal)
            );
        }
    }

    #[test]
    fn files_that_are_no_certificates_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "nothing").unwrap();
        let mut config = JournalConfig::default();
        let output = format!(
            "syslog,transport=tls,address=localhost,ca={}",
            path.display()
        );
        config.add_output(&output).unwrap();
        let error = Journal::new(&config, &Origin::default())
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            format!(
                "outputs[0].ca \"{}\": it holds no certificate; name a PEM file with certificates",
                path.display()
            )
        );
    }
}
