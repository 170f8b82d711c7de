//! Other people's programs, by other people's ways to read a clock.

mod sources;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use self::sources::{C, GO, JAVA, PYTHON};
use super::{
    clock::{REFERENCE, SECOND, expect},
    scene::{Scene, end},
};
use crate::{
    cgroup::Cgroup,
    clocks::{Reading, Source, Way},
    ensure,
    error::{Context, Failure, Result},
    harness::{Need, Test, die_with_parent, program},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("time::date", date).needs(of(&[Need::Program("date")])).timeout(60),
    Test::new("time::a_c_program", c).needs(of(&[Need::Program("cc")])).timeout(90),
    Test::new("time::a_static_c_program", static_c).needs(of(&[Need::Program("musl-gcc")])).timeout(90),
    Test::new("time::python", python).needs(of(&[Need::Program("python3")])).timeout(90),
    Test::new("time::go", go).needs(of(&[Need::Program("go")])).timeout(300).slow(),
    Test::new("time::java", java).needs(of(&[Need::Program("java")])).timeout(300).slow(),
    Test::new("time::a_certificate_expires", certificate).needs(of(&[Need::Program("openssl")])).timeout(90),
];

const fn of(needs: &'static [Need]) -> &'static [Need] {
    needs
}

/// As it is written, and in nanoseconds.
const OFFSET: (&str, i64) = ("--offset -2d", -2 * 86_400 * SECOND);

/// How often a program is begun until it is met.
const TRIES: u32 = 5;

/// A program that prints the time in every way it has, one in a line: the source, the time, and what the reference said before
/// and after, if the program can tell; all in nanoseconds.
struct Teller {
    words: Vec<String>,
    folder: PathBuf,
}

impl Teller {
    fn new(words: &[&str], folder: &Path) -> Self {
        Self { words: words.iter().map(ToString::to_string).collect(), folder: folder.into() }
    }

    /// Fails unless all that it prints is ahead by so much.
    fn says(&self, cgroup: &Cgroup, skew: i64) -> Result {
        let reference = || REFERENCE.read(Way::Raw).context("a clock");
        let (before, said) = (reference()?, run(Some(cgroup), &self.words, &self.folder)?);
        let after = reference()?;
        let readings = said.lines().map(|line| told(line, before, after).context(line));
        let readings = readings.collect::<Result<Vec<_>>>()?;
        ensure!(!readings.is_empty(), "{:?} says nothing", self.words);
        readings
            .iter()
            .try_for_each(|reading| expect(reading, REFERENCE, skew))
            .context(format_args!("{:?}", self.words))
    }
}

/// What a line tells of the time; of one that cannot tell when, it was while its program ran.
fn told(line: &str, before: i64, after: i64) -> Result<Reading> {
    let (source, numbers) = line.split_once(' ').context("no source")?;
    let source: Source = serde_json::from_value(source.into()).context(source)?;
    let numbers = numbers.split(' ').map(|number| number.parse::<i64>().context(number));
    let (ns, before, after) = match numbers.collect::<Result<Vec<_>>>()?[..] {
        [ns] => (ns, before, after),
        [ns, before, after] => (ns, before, after),
        _ => return Err(Failure::new("neither one number nor three")),
    };
    Ok(Reading { source, way: Way::Libc, ns, before, after })
}

/// Has a program begin again if it was not met before it looked at the clock: how often that may be is another test's.
fn met(attempt: impl Fn() -> Result) -> Result {
    let tries = (1..TRIES).find(|number| {
        let done = attempt();
        done.as_ref().err().inspect(|failure| println!("try {number}: {failure}"));
        done.is_ok()
    });
    tries.map_or_else(attempt, |_| Ok(()))
}

/// Runs a program in a cgroup, from its first instruction on, or where this process is.
fn run(cgroup: Option<&Cgroup>, words: &[String], folder: &Path) -> Result<String> {
    let [name, arguments @ ..] = words else { return Ok(String::new()) };
    let path = if name.contains('/') { Some(PathBuf::from(name)) } else { program(name) };
    let mut command = Command::new(path.context(format_args!("no program {name}"))?);
    command.args(arguments).current_dir(folder).env("TZ", "UTC").env("LC_ALL", "C");
    die_with_parent(&mut command);
    cgroup.map_or(Ok(()), |cgroup| cgroup.admit(&mut command))?;
    let output = command.output().context(name)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{words:?}: {}: {said}{complained}", output.status);
    Ok(said)
}

/// Before, during and after, beside the same program in another cgroup. All that a line tells must be as much ahead.
fn compared(tellers: &[Teller]) -> Result {
    let mut scene = Scene::set()?;
    let check = |scene: &Scene, target: i64, when: &str| {
        for teller in tellers {
            met(|| teller.says(&scene.cgroup, target)).context(when)?;
            teller.says(&scene.beside, 0).context(format_args!("{when}: the bystander"))?;
        }
        Ok::<_, Failure>(())
    };
    check(&scene, 0, "before")?;
    let (fault, _) = scene.armed(OFFSET.0)?;
    check(&scene, OFFSET.1, "armed")?;
    end(&fault)?;
    check(&scene, 0, "afterwards")?;
    scene.over("afterwards")
}

/// A folder of this test's. Removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("fl-time-programs-{}", std::process::id()));
        fs::create_dir_all(&path).context(path.display())?;
        Ok(Self(path))
    }

    /// Writes a file, and returns its path.
    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.0.join(name);
        fs::write(&path, text).context(path.display())?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Has a compiler make a program of a source, which is called the same without what is after the dot.
    fn compile(&self, words: &[&str]) -> Result {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        run(None, &words, &self.0).map(drop)
    }

    fn teller(&self, words: &[&str]) -> Teller {
        Teller::new(words, &self.0)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn date() -> Result {
    let folder = Folder::new()?;
    compared(&[folder.teller(&["date", "+realtime %s%N"])])
}

/// With glibc, dynamically and statically.
fn c() -> Result {
    let folder = Folder::new()?;
    let source = folder.write("tell.c", C)?;
    folder.compile(&["cc", "-O1", "-pthread", "-o", "tell", &source])?;
    // All that a dynamic program calls is the vDSO's.
    compared(&[folder.teller(&["./tell", "all"])])
}

/// musl looks for `clock_gettime` alone.
fn static_c() -> Result {
    let folder = Folder::new()?;
    let source = folder.write("tell.c", C)?;
    folder.compile(&["musl-gcc", "-O1", "-static", "-pthread", "-o", "tell", &source])?;
    compared(&[folder.teller(&["./tell", "all"])])
}

fn python() -> Result {
    let folder = Folder::new()?;
    compared(&[folder.teller(&["python3", "-c", PYTHON])])
}

/// It has no C library, and reads the vDSO's tables itself. Compiling takes minutes under emulation.
fn go() -> Result {
    let folder = Folder::new()?;
    let (source, home) = (folder.write("tell.go", GO)?, folder.0.to_string_lossy().into_owned());
    let cache = format!("GOCACHE={home}/cache");
    let words = ["env", "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GO111MODULE=off", &cache, "go", "build"];
    folder.compile(&[&words[..], &["-o", "tell-go", &source]].concat())?;
    compared(&[folder.teller(&["./tell-go"])])
}

/// It keeps a pointer to the function.
fn java() -> Result {
    let folder = Folder::new()?;
    let source = folder.write("Tell.java", JAVA)?;
    compared(&[folder.teller(&["java", &source])])
}

/// Good for a day from now, it has expired in two.
fn certificate() -> Result {
    let folder = Folder::new()?;
    folder.compile(&[
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=faultline.test",
        "-days",
        "1",
        "-keyout",
        "key",
        "-out",
        "certificate",
    ])?;
    let words = ["openssl", "verify", "-CAfile", "certificate", "certificate"].map(String::from);
    let verify = |cgroup: &Cgroup| run(Some(cgroup), &words, &folder.0);
    let good = |cgroup: &Cgroup, when: &str| {
        let said = verify(cgroup).context(when)?;
        ensure!(said.trim() == "certificate: OK", "{when}: {said:?}");
        Ok::<_, Failure>(())
    };
    let mut scene = Scene::set()?;
    good(&scene.cgroup, "before")?;
    for (offset, words) in [("2d", "has expired"), ("-2d", "is not yet valid")] {
        let (fault, _) = scene.armed(&format!("--offset {offset}"))?;
        met(|| {
            let said = verify(&scene.cgroup);
            let refused = said.as_ref().err().is_some_and(|failure| failure.to_string().contains(words));
            ensure!(refused, "{offset}: {said:?}, not {words:?}");
            Ok(())
        })?;
        good(&scene.beside, "the bystander")?;
        end(&fault)?;
        good(&scene.cgroup, "afterwards")?;
    }
    scene.target.until(0, Duration::from_millis(100))?;
    scene.over("afterwards")
}
