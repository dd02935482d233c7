//! Debian's Prometheus reads the page and answers the dashboard.

use crate::dashboard::{self, dashboard, not_everywhere, queries};
use crate::machine::Machine;
use anyhow::{Context, Result, bail, ensure};
use nyx_harness::prometheus::prometheus;
use nyx_metrics::Metrics;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed by then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves the page to whoever connects, for as long as the test runs.
fn serve(metrics: Arc<Metrics>) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A scraper that hangs up has its page or wants none.
            let _ = answer(stream, &metrics);
        }
    });
    Ok(port)
}

fn answer(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let page = metrics.page(None);
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{page}",
        page.len()
    )
}

/// Asks the Prometheus on `port` for `path`; the body.
fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "{status}: {body}");
    Ok(body.to_owned())
}

/// The result of an instant query.
fn query(port: u16, text: &str) -> Result<Vec<Value>> {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    let body = get(port, &format!("/api/v1/query?query={encoded}"))?;
    let answer: Value = serde_json::from_str(&body)?;
    ensure!(answer["status"] == "success", "{body}");
    Ok(answer["data"]["result"]
        .as_array()
        .cloned()
        .unwrap_or_default())
}

fn eventually(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    loop {
        match done() {
            Ok(true) => return Ok(()),
            Ok(false) if start.elapsed() > Duration::from_secs(60) => bail!("no {what}"),
            Err(error) if start.elapsed() > Duration::from_secs(60) => {
                return Err(error.context(format!("no {what}")));
            }
            Ok(false) | Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}

fn check(promtool: &Path, page: &str) -> Result<()> {
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("no standard input")?;
    input.write_all(page.as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.is_empty(),
        "promtool: {said}"
    );
    Ok(())
}

#[test]
#[ignore = "native: starts Debian's Prometheus"]
fn native_prometheus_reads_the_page_and_answers_the_dashboard() -> Result<()> {
    let tools = prometheus()?;
    let machine = Machine::new();
    let metrics = Arc::new(machine.metrics("web"));
    check(&tools.promtool, &metrics.page(None))?;
    // The checker does find fault.
    check(&tools.promtool, "nyx_wrong_total 1\n").expect_err("a counter without help and kind");

    // vCPU threads are known by their names.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let worker = machine.clone();
    let vcpu = thread::Builder::new().name("vcpu0".into()).spawn(move || {
        while stopped
            .recv_timeout(Duration::from_millis(5))
            .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            worker.works();
        }
    })?;
    let page_port = serve(metrics)?;
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("prometheus.yml");
    fs::write(
        &config,
        format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 400ms}}\n\
             scrape_configs:\n- job_name: nyx\n  static_configs:\n  - targets: ['127.0.0.1:{page_port}']\n"
        ),
    )?;
    // Free a moment ago; nobody else on this machine is handing out ports to tests at that rate.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let log = fs::File::create(folder.path().join("log"))?;
    let _server = Server(
        Command::new(&tools.server)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?,
    );
    eventually("Prometheus", || get(port, "/-/ready").map(|_| true))?;
    let scrapes = "count_over_time(nyx_vcpus[60s])";
    eventually("scrapes", || {
        let result = query(port, scrapes)?;
        let count = result
            .first()
            .and_then(|r| r["value"][1].as_str()?.parse::<f64>().ok());
        Ok(count.is_some_and(|n| n >= 8.0))
    })?;

    let up = query(port, "up")?;
    assert_eq!(up[0]["value"][1], "1");
    let dashboard = dashboard();
    for (panel, text) in queries(&dashboard) {
        let result = query(port, &text).with_context(|| format!("{panel}: {text}"))?;
        // Not every host tells all.
        let depends = dashboard::metrics(&text)
            .iter()
            .any(|name| not_everywhere(name));
        assert!(depends || !result.is_empty(), "{panel}: nothing for {text}");
        for series in &result {
            assert_eq!(series["metric"]["vm"], "web", "{panel}: {text}");
        }
    }
    let names: Value =
        serde_json::from_str(&get(port, "/api/v1/label/vm/values?match%5B%5D=nyx_vcpus")?)?;
    assert_eq!(names["data"], serde_json::json!(["web"]));

    // What the machine did is what comes out.
    let exits = query(port, "sum(rate(nyx_vcpu_exits_total{kind=\"pio\"}[10s]))")?;
    let rate: f64 = exits[0]["value"][1].as_str().context("no rate")?.parse()?;
    assert!(rate > 10.0, "{rate}");
    let p99 = query(
        port,
        "histogram_quantile(0.99, sum by (le) (rate(nyx_vcpu_exit_seconds_bucket[10s])))",
    )?;
    let p99: f64 = p99[0]["value"][1]
        .as_str()
        .context("no quantile")?
        .parse()?;
    assert!((0.000_002..=0.000_005).contains(&p99), "{p99}");
    drop(stop);
    vcpu.join().ok().context("the vCPU panicked")?;
    Ok(())
}
