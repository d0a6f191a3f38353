#!/bin/bash
# Start a temporary Slurm test cluster on this host: no systemd, no cgroups, no accounting
# database, loopback addresses only. Idempotent: a cluster left over in $ROOT is stopped first.
# Needs root and Debian's slurmctld slurmd slurm-client munge (installed here when missing).
#   SLURM_TEST_ROOT   state, logs, config               (default $TMPDIR/slurm-test-cluster)
#   SLURM_TEST_NODES  number of emulated nodes          (default 2)
#   SLURM_TEST_MODE   ns: each node in its own hostname+pid namespace (default) | plain
# Afterwards:  source $ROOT/env.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=${SLURM_TEST_ROOT:-${TMPDIR:-/tmp}/slurm-test-cluster}
N=${SLURM_TEST_NODES:-2}
MODE=${SLURM_TEST_MODE:-ns}
CTLD_PORT=${SLURM_TEST_CTLD_PORT:-16817}
SLURMD_PORT=${SLURM_TEST_SLURMD_PORT:-16818}

unable() {
    echo "no Slurm cluster to test with: $*" >&2
    exit 77 # the tests are skipped
}

# ---- packages (about 10 s the first time) -----------------------------------------------------
[ "$(id -u)" = 0 ] || unable "only root can start one"
for name in slurmctld slurmd sbatch munged; do
    command -v "$name" >/dev/null && continue
    command -v apt-get >/dev/null || unable "$name is missing, and apt-get is not available to install it"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >&2 || unable "apt-get update fails"
    apt-get install -y -q --no-install-recommends slurmctld slurmd slurm-client munge >&2 || unable "apt-get install fails"
    break
done
unshare --uts --pid --fork true 2>/dev/null || MODE=plain

SLURM_TEST_ROOT=$ROOT bash "$here/stop_cluster.sh"
install -d -m 0755 "$ROOT" "$ROOT"/{state,log,run,spool,gpu}
: > "$ROOT/slurm-test-cluster"     # stop_cluster.sh deletes only a folder with this mark
echo "$MODE" > "$ROOT/mode"
install -d -m 0700 "$ROOT/munge"
chmod 0755 "$ROOT/munge"          # munged requires that all users can enter the folder of its socket

# ---- node names -------------------------------------------------------------------------------
# All are 127.0.0.1, and each slurmd has its own port. Not 127.0.1.1, 127.0.1.2, ...: NoInAddrAny makes
# slurmd and srun listen on the address of their own hostname, but the kernel sends loopback traffic
# from 127.0.0.1, which is where slurmstepd then calls srun back: every srun in a batch job hangs.
# (sed -i would rename over /etc/hosts, which fails where it is a bind mount: rewrite in place)
{ grep -v '# slurm-test' /etc/hosts || true
  for i in $(seq "$N"); do echo "127.0.0.1 node$i # slurm-test"; done; } > "$ROOT/hosts.new"
cat "$ROOT/hosts.new" > /etc/hosts

# ---- config -----------------------------------------------------------------------------------
cat > "$ROOT/slurm.conf" <<CONF
ClusterName=testcluster
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$CTLD_PORT
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
MailProg=/bin/true
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also the wait before a requeued job starts again: default 120 s, under 5 is refused
AuthInfo=socket=$ROOT/munge/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
# one line per finished job (State, ExitCode, ...), so that no slurmdbd/sacct is needed
JobCompType=jobcomp/filetxt
JobCompLoc=$ROOT/log/jobcomp.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
PropagateResourceLimits=NONE
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool/%n
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd-%n.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
# quick reactions
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=2,sched_min_interval=0
SlurmdTimeout=10
MessageTimeout=10
KillWait=5
CompleteWait=0
InactiveLimit=0
ReturnToService=2
JobRequeue=1
# finished jobs stay visible to scontrol show job for this long
MinJobAge=3600
# use the sizes below, whatever the machine has
SlurmdParameters=config_overrides
NodeName=node[1-$N] NodeAddr=127.0.0.1 Port=[$SLURMD_PORT-$((SLURMD_PORT+N-1))] CPUs=64 Sockets=2 CoresPerSocket=32 ThreadsPerCore=1 RealMemory=1000000 Gres=gpu:8 Feature=fast State=UNKNOWN
PartitionName=cpu Nodes=node[1-$N] MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=test Nodes=node[1-$N] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
for i in 0 1 2 3 4 5 6 7; do mknod "$ROOT/gpu/fake$i" c 1 3; done   # gres.conf accepts device files only
echo "NodeName=node[1-$N] Name=gpu File=$ROOT/gpu/fake[0-7]" > "$ROOT/gres.conf"
cat > "$ROOT/env.sh" <<ENV
export SLURM_CONF=$ROOT/slurm.conf
ENV
export SLURM_CONF=$ROOT/slurm.conf

# ---- munge ------------------------------------------------------------------------------------
head -c 128 /dev/urandom > "$ROOT/munge/munge.key"; chmod 0400 "$ROOT/munge/munge.key"
munged --socket="$ROOT/munge/munge.socket" --key-file="$ROOT/munge/munge.key" \
       --pid-file="$ROOT/munge/munged.pid" --log-file="$ROOT/munge/munged.log" \
       --seed-file="$ROOT/munge/munged.seed"
munge -S "$ROOT/munge/munge.socket" -n | unmunge -S "$ROOT/munge/munge.socket" >/dev/null

# ---- daemons ----------------------------------------------------------------------------------
setsid slurmctld -D -c -f "$SLURM_CONF" </dev/null >"$ROOT/log/slurmctld.out" 2>&1 &
echo $! > "$ROOT/run/slurmctld.parent"
# nodes that start before slurmctld listens made the whole start take 1-10 s instead of 0.4
for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$CTLD_PORT") 2>/dev/null && break; sleep 0.1; done
for i in $(seq "$N"); do
    SLURM_TEST_ROOT=$ROOT SLURM_TEST_MODE=$MODE bash "$here/start_node.sh" "node$i"
done

# ---- wait until every node is idle --------------------------------------------------------------
for _ in $(seq 300); do
    idle=$(sinfo -h -t idle -o %D 2>/dev/null || true)
    [ "${idle:-0}" = "$N" ] && { echo "slurm test cluster up: $N nodes idle; source $ROOT/env.sh"; exit 0; }
    sleep 0.1
done
echo "slurm test cluster did not come up in 30 s" >&2
sinfo -N -l >&2 || true; tail -n 20 "$ROOT"/log/*.log >&2
exit 1
