//! Energy, where the machine tells it: Linux' powercap (RAPL) of PCs, or the INA sensors of Jetson boards. All programs
//! that run meanwhile are in it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Adds up the energy that was used.
pub struct Meter {
    source: Source,
    joules: f64,
    last: Instant,
}

enum Source {
    /// Counters, one a processor package.
    Counters(Vec<Counter>),
    /// Sensors of power, which must be looked at often; what they showed last, in watts.
    Sensors(Vec<Sensor>, f64),
}

struct Counter {
    name: String,
    path: PathBuf,
    /// Microjoules after which it begins anew.
    max: u64,
    last: u64,
}

struct Sensor {
    label: String,
    kind: SensorKind,
}

enum SensorKind {
    /// A file with microwatts.
    Power(PathBuf),
    /// Files with millivolts and milliamperes.
    VoltageAndCurrent(PathBuf, PathBuf),
}

impl Meter {
    /// What this machine has. Errors: why there is nothing, for people.
    pub fn open() -> Result<Meter, String> {
        Self::open_in(Path::new("/sys/class"))
    }

    fn open_in(class: &Path) -> Result<Meter, String> {
        let counters = counters(&class.join("powercap"));
        let source = match counters {
            Ok(counters) if !counters.is_empty() => Source::Counters(counters),
            other => {
                let sensors = sensors(&class.join("hwmon"));
                if sensors.is_empty() {
                    return Err(other.err().unwrap_or_else(|| "no powercap (RAPL) and no INA sensor here".to_owned()));
                }
                let watts = watts(&sensors).ok_or("the INA sensors cannot be read")?;
                Source::Sensors(sensors, watts)
            }
        };
        Ok(Meter { source, joules: 0.0, last: Instant::now() })
    }

    /// What is measured, for people.
    pub fn source(&self) -> String {
        let (kind, names): (_, Vec<_>) = match &self.source {
            Source::Counters(counters) => ("RAPL", counters.iter().map(|c| c.name.as_str()).collect()),
            Source::Sensors(sensors, _) => ("INA", sensors.iter().map(|s| s.label.as_str()).collect()),
        };
        format!("{kind} {}", names.join(" + "))
    }

    /// Joules since it was opened. To be called every few dozen milliseconds if there are sensors only, and every few
    /// minutes anyway: counters begin anew.
    pub fn joules(&mut self) -> f64 {
        let now = Instant::now();
        match &mut self.source {
            Source::Counters(counters) => {
                for counter in counters {
                    let Some(value) = number(&counter.path) else { continue };
                    let used = match value.checked_sub(counter.last) {
                        Some(used) => used,
                        None => counter.max.saturating_sub(counter.last).saturating_add(value),
                    };
                    counter.last = value;
                    self.joules += used as f64 / 1e6;
                }
            }
            Source::Sensors(sensors, before) => {
                let watts = watts(sensors).unwrap_or(*before);
                self.joules += (watts + *before) / 2.0 * (now - self.last).as_secs_f64();
                *before = watts;
            }
        }
        self.last = now;
        self.joules
    }
}

/// The counters of whole packages. What is inside them, the platform around them, and the same package again by another
/// way (`intel-rapl-mmio`) would be counted twice. Errors: there are some, and they cannot be read.
fn counters(powercap: &Path) -> Result<Vec<Counter>, String> {
    let mut counters = Vec::new();
    for dir in entries(powercap) {
        let id = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = text(&dir.join("name")).unwrap_or_default();
        if !id.starts_with("intel-rapl:") || !name.starts_with("package") {
            continue;
        }
        let path = dir.join("energy_uj");
        let last = match fs::read_to_string(&path) {
            Ok(value) => value.trim().parse().map_err(|_| format!("{} holds no number", path.display()))?,
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                return Err(format!("{} can be read by root only", path.display()));
            }
            Err(e) => return Err(format!("{} cannot be read: {e}", path.display())),
        };
        let max = number(&dir.join("max_energy_range_uj")).unwrap_or(u64::MAX);
        counters.push(Counter { name, path, max, last });
    }
    Ok(counters)
}

/// The sensors of the board's input, if there is one; else those of all its rails.
fn sensors(hwmon: &Path) -> Vec<Sensor> {
    /// The names of the rail that feeds all others, on boards that have it (Jetson Orin NX and Nano, TX2; the first Nano).
    const INPUTS: [&str; 2] = ["VDD_IN", "POM_5V_IN"];
    let mut sensors = Vec::new();
    for dir in entries(hwmon) {
        if !text(&dir.join("name")).is_some_and(|name| name.starts_with("ina")) {
            continue;
        }
        // An INA3221 has three channels; its fourth label is a sum of shunt voltages.
        for channel in 1..=3 {
            let file = |kind: &str, what: &str| dir.join(format!("{kind}{channel}_{what}"));
            let label = text(&file("in", "label")).or_else(|| text(&file("power", "label")));
            let label = label.unwrap_or_else(|| format!("channel {channel}"));
            let (power, voltage, current) = (file("power", "input"), file("in", "input"), file("curr", "input"));
            let kind = if number(&power).is_some() {
                SensorKind::Power(power)
            } else if number(&voltage).is_some() && number(&current).is_some() {
                SensorKind::VoltageAndCurrent(voltage, current)
            } else {
                continue;
            };
            sensors.push(Sensor { label, kind });
        }
    }
    if let Some(input) = sensors.iter().position(|s| INPUTS.contains(&s.label.as_str())) {
        return vec![sensors.swap_remove(input)];
    }
    sensors
}

fn watts(sensors: &[Sensor]) -> Option<f64> {
    let one = |sensor: &Sensor| match &sensor.kind {
        SensorKind::Power(path) => Some(number(path)? as f64 / 1e6),
        SensorKind::VoltageAndCurrent(voltage, current) => {
            Some(number(voltage)? as f64 * number(current)? as f64 / 1e6)
        }
    };
    sensors.iter().map(one).sum()
}

/// What is in a directory, sorted; nothing if it is not there.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut entries: Vec<PathBuf> = entries.collect();
    entries.sort();
    entries
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory as `/sys/class`, with these files.
    fn class(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        files.iter().for_each(|file| write(&dir, *file));
        dir
    }

    fn write(dir: &tempfile::TempDir, (path, content): (&str, &str)) {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("is a file")).expect("is made");
        fs::write(path, format!("{content}\n")).expect("is written");
    }

    #[test]
    fn packages_are_counted_once_and_counters_begin_anew() {
        let dir = class(&[
            ("powercap/intel-rapl:0/name", "package-0"),
            ("powercap/intel-rapl:0/energy_uj", "9000000"),
            ("powercap/intel-rapl:0/max_energy_range_uj", "10000000"),
            ("powercap/intel-rapl:0:0/name", "core"),
            ("powercap/intel-rapl:0:0/energy_uj", "1"),
            ("powercap/intel-rapl:1/name", "psys"),
            ("powercap/intel-rapl:1/energy_uj", "1"),
            ("powercap/intel-rapl-mmio:0/name", "package-0"),
            ("powercap/intel-rapl-mmio:0/energy_uj", "9000000"),
        ]);
        let mut meter = Meter::open_in(dir.path()).expect("there is one");
        assert_eq!(meter.source(), "RAPL package-0");
        assert_eq!(meter.joules(), 0.0);
        write(&dir, ("powercap/intel-rapl:0/energy_uj", "9500000"));
        assert_eq!(meter.joules(), 0.5);
        write(&dir, ("powercap/intel-rapl:0/energy_uj", "1000000"));
        assert_eq!(meter.joules(), 2.0);
    }

    #[test]
    fn a_board_is_measured_where_it_is_fed() {
        let rail = |name: &str| format!("hwmon/hwmon3/{name}");
        let names =
            ["name", "in1_label", "in1_input", "curr1_input", "in2_label", "in2_input", "curr2_input"].map(rail);
        let values = ["ina3221", "VDD_IN", "5000", "2000", "VDD_GPU", "1000", "1000"];
        let files: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(values).collect();
        let mut meter = Meter::open_in(class(&files).path()).expect("there is one");
        assert_eq!(meter.source(), "INA VDD_IN");
        let Source::Sensors(_, watts) = &meter.source else { panic!("no counters here") };
        assert_eq!(*watts, 10.0);
        assert!(meter.joules() >= 0.0);

        let values = ["ina3221", "VDD_CPU", "5000", "2000", "VDD_GPU", "1000", "1000"];
        let files: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(values).collect();
        let meter = Meter::open_in(class(&files).path()).expect("there is one");
        assert_eq!(meter.source(), "INA VDD_CPU + VDD_GPU");
        let Source::Sensors(_, watts) = &meter.source else { panic!("no counters here") };
        assert_eq!(*watts, 11.0);
    }

    #[test]
    fn a_machine_that_does_not_tell_says_why() {
        let check = |files: &[(&str, &str)], part: &str| {
            let why = Meter::open_in(class(files).path()).err().expect("does not tell");
            assert!(why.contains(part), "{why:?} lacks {part:?}");
        };
        check(&[], "no powercap");
        check(&[("hwmon/hwmon0/name", "k10temp"), ("hwmon/hwmon0/power1_input", "5")], "no powercap");
        check(&[("powercap/intel-rapl:0/name", "package-0")], "cannot be read");
        check(&[("powercap/intel-rapl:0/name", "package-0"), ("powercap/intel-rapl:0/energy_uj", "x")], "no number");
    }
}
