#!/usr/bin/env bash
# Runs a command under Open MPI on two hosts made from network namespaces, each with a name and an address of its own.
# Needs root and Debian's iproute2 and util-linux.
#   sudo tests/hosts/two_hosts.sh 2 python -m flrl.train backend=mpi        # 2 processes on each host
set -euo pipefail

slots=$1
shift
folder=$(mktemp -d)
export folder

cleanup() {
  for host in flrl-a flrl-b; do ip netns delete "$host" 2>/dev/null || true; done
  rm -rf "$folder"
}
trap cleanup EXIT

ip netns add flrl-a
ip netns add flrl-b
ip link add flrl-va netns flrl-a type veth peer name flrl-vb netns flrl-b
for end in a:1 b:2; do
  name=${end%:*}
  ip -n "flrl-$name" address add "10.83.0.${end#*:}/24" dev "flrl-v$name"
  ip -n "flrl-$name" link set "flrl-v$name" up
  ip -n "flrl-$name" link set lo up
  echo "10.83.0.${end#*:} flrl-$name" >> "$folder/hosts"
  echo "flrl-$name slots=$slots" >> "$folder/hostfile"
done

# "ssh": go into the namespace of that name, with a hostname and an /etc/hosts of its own.
cat > "$folder/agent" <<'AGENT'
#!/usr/bin/env bash
host=$1
shift
exec ip netns exec "$host" unshare --uts --mount sh -c \
  'hostname "$0"; mount --bind "$folder/hosts" /etc/hosts; exec sh -c "$*"' "$host" "$@"
AGENT
chmod +x "$folder/agent"

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
"$folder/agent" flrl-a mpiexec --hostfile "$folder/hostfile" --prtemca plm_ssh_agent "$folder/agent" \
  --mca btl self,sm,tcp --mca btl_tcp_if_include 10.83.0.0/24 --prtemca oob_tcp_if_include 10.83.0.0/24 \
  -x PATH -x PYTHONPATH -n $((2 * slots)) "$@"
