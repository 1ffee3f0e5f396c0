//! Parses metrics as Prometheus does, but stricter: anything that a page must not contain is a panic.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use server::listen::Listeners;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The labels of a series, by name.
type Labels = BTreeMap<String, String>;

/// A parsed page of metrics.
#[derive(Debug, Clone)]
pub struct Scrape {
    samples: BTreeMap<(String, Labels), f64>,
    /// The type of each family.
    types: BTreeMap<String, String>,
    /// The text of the page.
    pub text: String,
}

/// Makes an HTTP request. Returns the status line with the headers in lower case, and the body. An error if nothing
/// answers.
pub async fn http(address: SocketAddr, method: &str, path: &str) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.to_ascii_lowercase(), body.to_owned()))
}

/// Binds listeners for calls and for metrics to free ports. Returns them and their addresses.
pub async fn listeners() -> (Listeners, [SocketAddr; 2]) {
    let bind = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (calls, metrics) = (bind().await, bind().await);
    let addresses = [calls.local_addr().unwrap(), metrics.local_addr().unwrap()];
    (Listeners { calls, metrics: Some(metrics) }, addresses)
}

impl Scrape {
    /// Reads the metrics page of a service.
    pub async fn of(address: SocketAddr) -> Self {
        let (head, body) = http(address, "GET", "/metrics").await.unwrap();
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert!(head.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
        check_with_promtool(&body);
        Self::parse(&body)
    }

    /// Parses the text format 0.0.4. Each family must appear once and in one piece, after its help and type. Each
    /// series must appear once. Histograms must add up.
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no newline");
        let mut scrape = Self { samples: BTreeMap::new(), types: BTreeMap::new(), text: text.to_owned() };
        let (mut helped, mut family) = (String::new(), String::new());
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
                assert!(is_name(name) && !words.trim().is_empty(), "{line}");
                helped = name.to_owned();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap_or_else(|| panic!("no type: {line}"));
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(name, helped, "HELP must precede TYPE");
                assert_eq!(kind == "counter", name.ends_with("_total"), "counters end with _total: {line}");
                assert!(scrape.types.insert(name.to_owned(), kind.to_owned()).is_none(), "duplicate family: {line}");
                family = name.to_owned();
            } else {
                let (name, labels, value) = sample(line);
                let histogram = scrape.types.get(&family).is_some_and(|kind| kind == "histogram");
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                assert_eq!(if histogram { base.unwrap_or(name) } else { name }, family, "outside its family: {line}");
                assert!(value >= 0.0, "{line}");
                assert!(scrape.samples.insert((name.to_owned(), labels), value).is_none(), "duplicate series: {line}");
            }
        }
        scrape.check_histograms();
        scrape
    }

    fn check_histograms(&self) {
        let mut buckets: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
        for ((name, labels), value) in &self.samples {
            if let Some(family) = name.strip_suffix("_bucket") {
                let mut labels = labels.clone();
                let bound = labels.remove("le").unwrap_or_else(|| panic!("a bucket of {name} without the label le"));
                buckets.entry((family, labels)).or_default().push((number(&bound), *value));
            }
        }
        for ((family, labels), mut buckets) in buckets {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{family} {labels:?} {buckets:?}");
            let all = self.samples[&(format!("{family}_count"), labels.clone())];
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, all)), "{family} {labels:?}");
            assert!(self.samples.contains_key(&(format!("{family}_sum"), labels)));
        }
    }

    /// The value of one series. Panics if there is no such series.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let owned = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let value = self.samples.get(&(name.to_owned(), owned));
        *value.unwrap_or_else(|| panic!("no {name} {labels:?} in {}", self.text)) as u64
    }

    /// The sum of all series of this name that have these labels, among others.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let fits = |of: &Labels| labels.iter().all(|(name, value)| of.get(*name).is_some_and(|is| is == value));
        self.samples.iter().filter(|((known, of), _)| known == name && fits(of)).map(|(_, value)| *value).sum::<f64>()
            as u64
    }

    /// The sums of the series of this name that are not 0, by the value of one label.
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for ((known, labels), value) in &self.samples {
            if known == name && *value > 0.0 {
                *sums.entry(labels.get(label).cloned().unwrap_or_default()).or_default() += *value as u64;
            }
        }
        sums
    }

    /// Whether there is a series of this name.
    pub fn has(&self, name: &str) -> bool {
        self.samples.keys().any(|(known, _)| known == name)
    }

    /// The names of all families.
    pub fn families(&self) -> BTreeSet<&str> {
        self.types.keys().map(String::as_str).collect()
    }

    /// All series, without their values.
    pub fn series(&self) -> BTreeSet<(String, Labels)> {
        self.samples.keys().cloned().collect()
    }
}

/// Checks the page with `promtool` too, if it is installed.
fn check_with_promtool(text: &str) {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    let check =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut check) = check else { return };
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn sample(line: &str) -> (&str, Labels, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
    let (name, labels) = match series.split_once('{') {
        None => (series, Labels::new()),
        Some((name, rest)) => {
            let rest = rest.strip_suffix('}').unwrap_or_else(|| panic!("no closing brace: {line}"));
            // Label values contain no comma and no quote, since they come from closed sets.
            let labels = rest.split(',').map(|pair| {
                let (label, value) = pair.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
                let value = value.strip_suffix('"').unwrap_or_else(|| panic!("no closing quote: {line}"));
                assert!(is_name(label) && !label.contains(':') && !value.contains(['"', '\\', '{']), "{line}");
                (label.to_owned(), value.to_owned())
            });
            let (count, labels) = (rest.split(',').count(), labels.collect::<Labels>());
            assert_eq!(labels.len(), count, "duplicate label: {line}");
            (name, labels)
        }
    };
    assert!(is_name(name), "{line}");
    (name, labels, number(value))
}

fn number(text: &str) -> f64 {
    if text == "+Inf" { f64::INFINITY } else { text.parse().unwrap_or_else(|_| panic!("not a number: {text}")) }
}

fn is_name(text: &str) -> bool {
    let start = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    start && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}
