//! A TLS connection to a syslog server (RFC 5425), without a thread of its own.

use super::Stop;
use super::stream::{Peer, Wait, connect};
use crate::config::{JournalError, SyslogOutput};
use rustix::event::PollFlags;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::fmt;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;

/// Where systems keep the authorities they trust.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

pub(crate) struct TlsLink {
    peer: Peer,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    stop: Stop,
    open: Option<(TcpStream, ClientConnection)>,
}

fn certificates(path: &Path, field: &str) -> Result<Vec<CertificateDer<'static>>, JournalError> {
    let refused = |why: &dyn fmt::Display| {
        let mend = format!("{why}; name a PEM file with certificates");
        JournalError::value(field, path.display(), mend)
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| refused(&e))?;
    if found.is_empty() {
        return Err(refused(&"it holds no certificate"));
    }
    Ok(found)
}

fn configure(config: &SyslogOutput, field: &str) -> Result<ClientConfig, JournalError> {
    let ca_field = format!("{field}.ca");
    let bundle = BUNDLES.iter().map(Path::new).find(|path| path.exists());
    let Some(ca) = config.ca.as_deref().or(bundle) else {
        let mend = "this system has no bundle of authorities; name a PEM file with those to trust";
        return Err(JournalError::value(ca_field, "", mend));
    };
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates(ca, &ca_field)?);
    if added == 0 {
        let mend = "none of its certificates can be used; name a PEM file with authorities";
        return Err(JournalError::value(ca_field, ca.display(), mend));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let refused = |field: String, value: &dyn fmt::Display, e: &dyn fmt::Display| {
        JournalError::value(
            field,
            value,
            format!("{e}; check the certificate and its key"),
        )
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| refused(field.into(), &"tls", &e))?
        .with_root_certificates(roots);
    match (&config.cert, &config.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert, &format!("{field}.cert"))?;
            let key_field = format!("{field}.key");
            let private = PrivateKeyDer::from_pem_file(key)
                .map_err(|e| refused(key_field.clone(), &key.display(), &e))?;
            builder
                .with_client_auth_cert(chain, private)
                .map_err(|e| refused(key_field, &key.display(), &e))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

impl TlsLink {
    pub(crate) fn new(
        peer: Peer,
        config: &SyslogOutput,
        field: &str,
        stop: &Stop,
    ) -> Result<Self, JournalError> {
        let host = match &peer {
            Peer::Tcp(host, _) | Peer::Udp(host, _) => host.clone(),
            Peer::Unix(path) => path.display().to_string(),
        };
        let name = config.server_name.clone().unwrap_or(host);
        let server = ServerName::try_from(name.clone()).map_err(|_| {
            let mend = "write the DNS name or the address that the certificate is for";
            JournalError::value(format!("{field}.server_name"), name, mend)
        })?;
        Ok(Self {
            peer,
            name: server,
            config: Arc::new(configure(config, field)?),
            stop: stop.clone(),
            open: None,
        })
    }

    pub(crate) fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let sent = self.try_send(frame);
        sent.map_err(|e| {
            self.open = None;
            io::Error::new(e.kind(), format!("tls {}: {e}", self.peer))
        })
    }

    /// Ends the connection as RFC 5425, section 4.4, wants it.
    pub(crate) fn close(&mut self) {
        if let Some((mut stream, mut tls)) = self.open.take() {
            tls.send_close_notify();
            // If it does not get through, the server finds out by itself.
            let _ = pump(&mut stream, &mut tls, &self.stop);
            // Unread bytes, such as session tickets, would turn the end into a reset.
            let _ = listen(&mut stream, &mut tls);
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    fn try_send(&mut self, frame: &[u8]) -> io::Result<()> {
        if let Some((stream, tls)) = &mut self.open
            && !listen(stream, tls).is_ok_and(|is_open| is_open)
        {
            self.open = None;
        }
        let (stream, tls) = match &mut self.open {
            Some(open) => open,
            none => {
                let Peer::Tcp(host, port) = &self.peer else {
                    return Err(io::ErrorKind::Unsupported.into());
                };
                let mut stream = connect(host, *port)?;
                let config = Arc::clone(&self.config);
                let mut tls =
                    ClientConnection::new(config, self.name.clone()).map_err(io::Error::other)?;
                // A broken server says so now, not after entries were entrusted to it.
                pump(&mut stream, &mut tls, &self.stop)?;
                none.insert((stream, tls))
            }
        };
        tls.writer().write_all(frame)?;
        pump(stream, tls, &self.stop)
    }
}

/// Takes what the server has sent, without waiting; whether the connection is still open.
fn listen(stream: &mut TcpStream, tls: &mut ClientConnection) -> io::Result<bool> {
    // A server that talks without end is not listened to without end.
    for _ in 0..64 {
        match tls.read_tls(stream) {
            Ok(0) => return Ok(false),
            Ok(_) => {
                let state = tls.process_new_packets().map_err(io::Error::other)?;
                if state.peer_has_closed() {
                    return Ok(false);
                }
                // Syslog servers have nothing to say; what they say is thrown away.
                let said = state.plaintext_bytes_to_read();
                io::copy(
                    &mut io::Read::take(tls.reader(), said as u64),
                    &mut io::sink(),
                )?;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// Shakes hands and writes all that is to be written.
fn pump(stream: &mut TcpStream, tls: &mut ClientConnection, stop: &Stop) -> io::Result<()> {
    let mut wait = Wait::new(stop);
    loop {
        while tls.wants_write() {
            match tls.write_tls(stream) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => wait.reset(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    wait.on(stream, PollFlags::OUT)?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if !tls.is_handshaking() {
            return Ok(());
        }
        wait.on(stream, PollFlags::IN)?;
        if !listen(stream, tls)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
