#!/usr/bin/env bash
# Slurm with two nodes of one CPU on this machine while a command runs, which gets SLURM_CONF:
#   bash tests/cluster/slurm_on_one_machine.sh FOLDER COMMAND …
# FOLDER, which is made, takes all that it writes; FOLDER/n1.pid and n2.pid are its nodes'. Needs root and Debian's
# packages: apt-get install slurm-wlm munge
set -euo pipefail
mkdir -p "$1" && folder=$(realpath "$1") && shift
mkdir -p "$folder"/{state,spool}
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

started=()
end() { for pid in "${started[@]}"; do kill "$pid" 2> /dev/null || true; done; wait; }
trap end EXIT

munge=$folder/munge
head -c 128 /dev/urandom > "$munge.key" && chmod 400 "$munge.key"
munged --foreground --force --key-file "$munge.key" --socket "$munge.socket" --pid-file "$munge.pid" \
    --log-file "$munge.log" --seed-file "$munge.seed" 2> "$munge.stderr" &
started+=($!)

cat > "$folder/slurm.conf" << CONF
ClusterName=here
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$(port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=20
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$(port) CPUs=1
NodeName=n2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$(port) CPUs=1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
CONF
export SLURM_CONF=$folder/slurm.conf
for _ in $(seq 50); do [ -S "$munge.socket" ] && break; sleep 0.1; done
slurmctld -D 2> "$folder/slurmctld.stderr" & started+=($!)
for node in n1 n2; do slurmd -D -N "$node" 2> "$folder/$node.stderr" & started+=($!); done
for _ in $(seq 100); do [ "$(sinfo --noheader --states=idle --format=%D 2> /dev/null)" = 2 ] && break; sleep 0.2; done
"$@"
