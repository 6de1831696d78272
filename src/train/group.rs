//! Processes that train one model together: how they find each other, and what they compute in common.

use crate::error::lock;
use crate::native::{Connection, Keeper, Listen};
use crate::store::digest::digest;
use crate::{Error, Result};
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tch::{Device, Tensor, no_grad};

/// Most bytes of gradients that are added up at once, as in PyTorch's `DistributedDataParallel`.
const BUCKET: usize = 25 << 20;
/// How long a process waits for the others, if `KDLAB_TIMEOUT` does not say.
const SECONDS: f64 = 600.0;

/// Processes that train one model together, each on its part of every batch: data parallelism, by PyTorch's
/// `torch.distributed` (c10d) with gloo on CPUs and NCCL on NVIDIA GPUs.
///
/// Give it to [`FitOptions::group`](super::FitOptions::group) in a program that `torchrun --no-python`, `srun` or
/// `cargo lab train` starts several times. The network that is trained may have no BatchNorm that learns.
/// `docs/cluster-training.md` shows how to start it on one machine, on several, and under Slurm.
///
/// ```no_run
/// use kdlab::models::Model;
/// use kdlab::train::{Criterion, Examples, FitOptions, Group, fit};
///
/// fn train(model: &mut Model, train: &Examples, validation: &Examples) -> kdlab::Result<()> {
///     let options = FitOptions { group: Group::join()?, folder: Some("runs/fit".into()), ..FitOptions::default() };
///     fit(model, train, validation, &Criterion::cross_entropy(), &options)?;
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Group(Arc<Joined>);

/// The part of a batch that a process computes.
pub(super) struct Share {
    pub range: Range<usize>,
    /// The share of the batch's loss that this part's mean loss is; 0 where the batch has too few images for a part of
    /// this process, which then computes an image that does not count, so that it takes part in the step.
    pub weight: f64,
}

struct Joined {
    rank: usize,
    size: usize,
    local_rank: usize,
    timeout: Duration,
    connection: Mutex<Connection>,
}

impl Group {
    /// Joins the processes that a launcher has started together, and waits until all are there. Returns `None` in a
    /// process that was started alone.
    ///
    /// It reads `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`, as torchrun sets them; of Slurm,
    /// `SLURM_PROCID`, `SLURM_NTASKS` and `SLURM_LOCALID`. `KDLAB_TIMEOUT` is the number of seconds that a process
    /// waits for the others here and in every step (600), and `GLOO_SOCKET_IFNAME` names the network interface if the
    /// one that reaches `MASTER_ADDR` is not the right one.
    ///
    /// # Errors
    /// When a variable is missing or wrong, the processes disagree on their number, or they do not reach each other
    /// in time.
    pub fn join() -> Result<Option<Self>> {
        Rendezvous::read(&|name| std::env::var(name).ok().filter(|text| !text.is_empty()))?.map(Self::at).transpose()
    }

    /// Joins the group at this place.
    pub(crate) fn at(place: Rendezvous) -> Result<Self> {
        let Rendezvous { rank, size, local_rank, host, port, timeout, .. } = &place;
        let target = resolved(host, *port)?;
        let (address, listen) = (address_towards(target)?, place.interface.clone().map(Listen::Interface));
        if listen.is_none() && address.is_loopback() && place.on_several_machines {
            return Err(Error::Input(format!(
                "MASTER_ADDR is {host:?}, which means {address} here: the other machines do not reach that; give the \
                 address that rank 0's machine has in the network (`hostname -I`), or name its network interface in \
                 GLOO_SOCKET_IFNAME"
            )));
        }
        let keeper = match (place.agent_keeps_store || *rank > 0, target.ip().is_loopback()) {
            (true, _) => Keeper::Other,
            // Nobody else needs to reach it.
            (false, true) => Keeper::Socket(TcpListener::bind(target).map_err(|e| taken(*port, &e.to_string()))?),
            (false, false) => Keeper::Everybody,
        };
        let (seconds, keeps) = (timeout.as_secs_f64(), !matches!(keeper, Keeper::Other));
        let connection = Connection::open(&target.ip().to_string(), *port, keeper, &place.prefix, *timeout);
        let connection = connection.map_err(|e| match keeps {
            true => taken(*port, &e.to_string()),
            false => Error::Network(format!(
                "rank {rank} of {size} found no rank 0 at {host}:{port} in {seconds} s: start all ranks, give them one \
                 MASTER_ADDR and MASTER_PORT, and let the firewall pass that port ({e})"
            )),
        })?;
        let alone = |e: Error| {
            Error::Network(format!(
                "rank {rank} of {size} waited {seconds} s for the others: start all ranks with one MASTER_ADDR, \
                 MASTER_PORT and WORLD_SIZE, and see that the machines reach each other; KDLAB_TIMEOUT=1200 waits \
                 longer ({e})"
            ))
        };
        let found = connection.first("size", &size.to_string()).map_err(alone)?;
        if found != size.to_string() {
            return Err(Error::Input(format!(
                "rank {rank} was told of {size} processes and another rank of {found}: give all the same WORLD_SIZE"
            )));
        }
        let this = format!("process {} at {address}", std::process::id());
        let found = connection.first(&format!("rank {rank}"), &this).map_err(alone)?;
        if found != this {
            return Err(Error::Input(format!("rank {rank} is taken by {found}: give every process a RANK of its own")));
        }
        let listen = listen.unwrap_or(Listen::Address(address));
        connection.join(*rank, *size, &listen, tch::Cuda::is_available(), *timeout).map_err(alone)?;
        let (rank, size, local_rank, timeout) = (*rank, *size, *local_rank, *timeout);
        Ok(Self(Arc::new(Joined { rank, size, local_rank, timeout, connection: Mutex::new(connection) })))
    }

    /// The number of this process, from 0.
    pub(crate) fn rank(&self) -> usize {
        self.0.rank
    }

    /// The number of this process among those of its machine, from 0.
    pub(crate) fn local_rank(&self) -> usize {
        self.0.local_rank
    }

    pub(super) fn size(&self) -> usize {
        self.0.size
    }

    /// The part of so many rows that belongs to this process.
    pub(super) fn part(&self, rows: usize) -> Range<usize> {
        let Joined { rank, size, .. } = *self.0;
        rows * rank / size..rows * (rank + 1) / size
    }

    /// The part of a batch of so many images that this process computes.
    pub(super) fn share(&self, images: usize) -> Share {
        let range = self.part(images);
        let weight = range.len() as f64 / images.max(1) as f64;
        Share { range: if range.is_empty() { 0..images.min(1) } else { range }, weight }
    }

    /// Replaces a tensor by its sum over all processes.
    pub(super) fn sum(&self, tensor: &Tensor) -> Result<()> {
        let Joined { rank, size, timeout, connection, .. } = &*self.0;
        lock(connection).sum(tensor).map_err(|e| {
            Error::Network(format!(
                "rank {rank} of {size} lost the others: one of them ended, or did not answer for {} s. Its own message \
                 says why; start all ranks again, and a fit with a folder goes on after its last epoch ({e})",
                timeout.as_secs_f64()
            ))
        })
    }

    /// Returns the sum of each value over all processes.
    pub(super) fn sum_values(&self, values: &[f64]) -> Result<Vec<f64>> {
        let tensor = Tensor::f_from_slice(values)?;
        self.sum(&tensor)?;
        Ok(Vec::try_from(tensor)?)
    }

    /// Returns the sum of a value over all processes.
    pub(super) fn sum_value(&self, value: f64) -> Result<f64> {
        Ok(self.sum_values(&[value])?[0])
    }

    /// Waits until all processes are here.
    pub(super) fn wait(&self) -> Result<()> {
        self.sum_value(0.0).map(drop)
    }

    /// Returns whether all processes gave this text.
    pub(super) fn is_same(&self, text: &str) -> Result<bool> {
        let first = self.rank() == 0;
        // Of one length.
        let own: Vec<f64> = digest(&[text.as_bytes()]).bytes().map(f64::from).collect();
        let differs =
            self.sum_values(&own.iter().map(|byte| if first { *byte } else { 0.0 }).collect::<Vec<_>>())? != own;
        Ok(self.sum_value(differs.into())? == 0.0)
    }

    /// Replaces each gradient by its sum over all processes. All give the same parameters in the same order.
    pub(super) fn sum_gradients(&self, gradients: &mut [Tensor]) -> Result<()> {
        let (mut bucket, mut bytes, mut kind) = (0, 0, None);
        let in_bucket = |t| {
            let t: &mut Tensor = t;
            let size = t.numel() * t.kind().elt_size_in_bytes();
            if kind != Some(t.kind()) || bytes + size > BUCKET {
                (bucket, bytes, kind) = (bucket + 1, 0, Some(t.kind()));
            }
            bytes += size;
            (bucket, t)
        };
        let mut all: Vec<_> = gradients.iter_mut().filter(|t| t.defined()).map(in_bucket).collect();
        no_grad(|| {
            for bucket in all.chunk_by_mut(|(a, _), (b, _)| a == b) {
                let flat = bucket.iter().map(|(_, t)| Ok(t.f_reshape(-1)?)).collect::<Result<Vec<_>>>()?;
                let sizes: Vec<i64> = flat.iter().map(|t| t.numel() as i64).collect();
                let flat = Tensor::f_cat(&flat, 0)?;
                self.sum(&flat)?;
                for ((_, t), sum) in bucket.iter_mut().zip(flat.f_split_with_sizes(&sizes, 0)?) {
                    **t = sum.f_view(t.size().as_slice())?;
                }
            }
            Ok(())
        })
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.0.rank, self.0.size)
    }
}

/// Where the processes of a group find each other, as a launcher tells each of them.
#[derive(Debug, PartialEq)]
pub(crate) struct Rendezvous {
    pub rank: usize,
    pub size: usize,
    pub local_rank: usize,
    /// Where rank 0, or the launcher's agent, keeps the store.
    pub host: String,
    pub port: u16,
    /// torchrun's agent keeps the store, instead of rank 0.
    pub agent_keeps_store: bool,
    /// Of keys in the store, which the agent keeps when it starts the processes again.
    pub prefix: String,
    /// The network interface, where the user chose one.
    pub interface: Option<String>,
    pub on_several_machines: bool,
    pub timeout: Duration,
}

impl Rendezvous {
    /// Reads the environment; `None` for a process that was started alone.
    fn read(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let wrong = |what: String| Err(Error::Input(what));
        let number = |name: &str| match get(name).map(|text| (text.parse::<usize>(), text)) {
            Some((Err(_), text)) => {
                Err(Error::Input(format!("{name} must be a whole number, got {text:?}; the launcher sets it")))
            }
            found => Ok(found.and_then(|(number, _)| number.ok())),
        };
        let slurm = get("RANK").is_none() && get("WORLD_SIZE").is_none();
        let (rank_name, size_name, local_name) = match slurm {
            true if get("SLURM_PROCID").is_none() => return Ok(None),
            true => ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
            false => ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        };
        let needed = |name: &str, found: Option<usize>| {
            found.ok_or_else(|| {
                Error::Input(format!(
                    "{name} is not set, and {rank_name} or {size_name} is: start the program by `cargo lab train`, \
                     `torchrun --no-python` or `srun`, which set them all, or unset them to train alone"
                ))
            })
        };
        let (rank, size) = (needed(rank_name, number(rank_name)?)?, needed(size_name, number(size_name)?)?);
        if rank >= size {
            return wrong(format!(
                "{rank_name} is {rank} and {size_name} {size}: ranks count from 0, so {rank_name} must be below \
                 {size_name}"
            ));
        }
        if size == 1 {
            return Ok(None);
        }
        let Some((host, port)) = get("MASTER_ADDR").zip(get("MASTER_PORT")) else {
            return wrong(
                "MASTER_ADDR and MASTER_PORT must say where rank 0 is: torchrun sets them; for srun write before it \
                 `export MASTER_ADDR=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1) MASTER_PORT=29500`"
                    .into(),
            );
        };
        let Some(port) = port.parse().ok().filter(|port| *port > 0) else {
            return wrong(format!("MASTER_PORT must be a port, 1 to 65535, got {port:?}; 29500 is usual"));
        };
        let seconds = get("KDLAB_TIMEOUT").map(|text| (text.parse::<f64>().ok(), text));
        let timeout = match seconds {
            None => Some(SECONDS),
            Some((seconds, _)) => seconds,
        };
        let timeout = timeout.filter(|seconds| *seconds >= 0.001).and_then(|s| Duration::try_from_secs_f64(s).ok());
        let Some(timeout) = timeout else {
            return wrong("KDLAB_TIMEOUT must be a number of seconds above 0, such as 600".into());
        };
        let here = number("LOCAL_WORLD_SIZE")?;
        let machines = if slurm { number("SLURM_NNODES")? } else { None };
        Ok(Some(Self {
            rank,
            size,
            local_rank: number(local_name)?.unwrap_or(0),
            host,
            port,
            agent_keeps_store: get("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True"),
            prefix: format!("kdlab {}", get("TORCHELASTIC_RESTART_COUNT").unwrap_or_default()),
            interface: get("GLOO_SOCKET_IFNAME"),
            on_several_machines: here.is_some_and(|here| here < size) || machines.is_some_and(|n| n > 1),
            timeout,
        }))
    }
}

fn taken(port: u16, why: &str) -> Error {
    Error::Network(format!("rank 0 cannot listen at port {port}: choose another MASTER_PORT, on all ranks ({why})"))
}

fn resolved(host: &str, port: u16) -> Result<SocketAddr> {
    let found = (host, port).to_socket_addrs().map(|mut all| all.next());
    let why = match found {
        Ok(Some(address)) => return Ok(address),
        Ok(None) => "no address".to_owned(),
        Err(e) => e.to_string(),
    };
    Err(Error::Network(format!("MASTER_ADDR {host:?} names no machine: give a name or address of rank 0's ({why})")))
}

/// The address of this machine in the network of another. gloo would take the one of its host name, which is often that
/// of the loopback.
fn address_towards(target: SocketAddr) -> Result<IpAddr> {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    // Connecting a UDP socket sends nothing: it chooses the route.
    let address = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(target)?;
        socket.local_addr()
    });
    address.map(|address| address.ip()).map_err(|e| {
        Error::Network(format!("this machine has no way to MASTER_ADDR {}: check its network ({e})", target.ip()))
    })
}

/// The CUDA device or CPU of a process of a group.
pub(crate) fn device_of(group: &Group, available: i64) -> Result<Device> {
    let local = group.local_rank();
    match available {
        0 => Ok(Device::Cpu),
        n if (local as i64) < n => Ok(Device::Cuda(local)),
        n => Err(Error::Input(format!(
            "LOCAL_RANK is {local} and this machine has {n} CUDA devices: start at most {n} processes on it, or set \
             KDLAB_DEVICE=cpu"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Rendezvous>> {
        Rendezvous::read(&|name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    const MASTER: [(&str, &str); 2] = [("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500")];

    #[test]
    fn the_variables_of_torchrun_and_of_slurm_mean_the_same() {
        let torch = [&MASTER[..], &[("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")]].concat();
        let slurm = [&MASTER[..], &[("SLURM_PROCID", "3"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "1")]].concat();
        let place = read(&torch).unwrap().unwrap();
        assert_eq!((place.rank, place.size, place.local_rank), (3, 4, 1));
        assert_eq!((place.host.as_str(), place.port, place.timeout.as_secs()), ("10.0.0.1", 29500, 600));
        assert!(!place.agent_keeps_store && !place.on_several_machines);
        assert_eq!(read(&slurm).unwrap().unwrap(), place);
        let extra = [("LOCAL_WORLD_SIZE", "2"), ("TORCHELASTIC_USE_AGENT_STORE", "True"), ("KDLAB_TIMEOUT", "2.5")];
        let agent = [&torch[..], &extra, &[("TORCHELASTIC_RESTART_COUNT", "1")]].concat();
        let agent = read(&agent).unwrap().unwrap();
        assert!(agent.agent_keeps_store && agent.on_several_machines && agent.prefix != place.prefix);
        assert_eq!(agent.timeout.as_millis(), 2500);
    }

    #[test]
    fn a_process_alone_has_no_group() {
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
        // A shell of `salloc`.
        assert_eq!(read(&[("SLURM_NTASKS", "4")]).unwrap(), None);
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")]).unwrap(), None);
    }

    #[test]
    fn wrong_variables_are_named_with_a_way_out() {
        let two = [("RANK", "1"), ("WORLD_SIZE", "2")];
        for (pairs, parts) in [
            (&[("RANK", "1")][..], ["WORLD_SIZE is not set", "torchrun --no-python"]),
            (&[("WORLD_SIZE", "2")], ["RANK is not set", "unset them"]),
            (&[("SLURM_PROCID", "0")], ["SLURM_NTASKS is not set", "srun"]),
            (&[("RANK", "-1"), ("WORLD_SIZE", "2")], ["RANK must be a whole number", "\"-1\""]),
            (&[("RANK", "2"), ("WORLD_SIZE", "2")], ["RANK is 2 and WORLD_SIZE 2", "below"]),
            (&two, ["MASTER_ADDR and MASTER_PORT", "scontrol show hostnames"]),
            (&[&two[..], &[MASTER[0], ("MASTER_PORT", "ssh")]].concat(), ["MASTER_PORT must be a port", "\"ssh\""]),
            (&[&two[..], &MASTER, &[("KDLAB_TIMEOUT", "0")]].concat(), ["KDLAB_TIMEOUT must be", "above 0"]),
        ] {
            let said = read(pairs).unwrap_err().to_string();
            assert!(parts.iter().all(|part| said.contains(part)), "{pairs:?}: {said}");
        }
    }

    #[test]
    fn gloo_listens_at_the_address_that_reaches_the_master() {
        assert!(address_towards("127.0.0.1:29500".parse().unwrap()).unwrap().is_loopback());
        let said = resolved("no such machine", 1).unwrap_err().to_string();
        assert!(said.contains("names no machine"), "{said}");
    }
}
