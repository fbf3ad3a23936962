#!/bin/busybox sh
# The first process of the emulated machine. It sets the machine up as /vm/settings says, runs
# /vm/command, and powers off. The kernel's console is the first serial port, the command's output
# the second, its exit status the third. A step that fails ends this process, and with it the
# machine: the kernel's console shows where.
set -e
export PATH=/bin:/usr/bin:/sbin:/usr/sbin HOME=/root
. /vm/settings

# pivot_root cannot exchange the kernel's first file system, so the machine moves to another one.
if [ "$PIVOTABLE_ROOT" = true ] && [ ! -e /vm/moved ]; then
  busybox mkdir /new
  busybox mount -t tmpfs -o size=90%,mode=755 root /new
  for folder in /*; do
    case $folder in
      /new | /dev | /proc | /sys) ;;
      *) busybox cp -a "$folder" /new/ ;;
    esac
  done
  busybox mkdir -p /new/dev
  busybox mknod /new/dev/console c 5 1
  busybox touch /new/vm/moved
  exec busybox switch_root /new /init
fi

# Programs that exist already are kept; busybox provides the rest.
busybox mkdir -p /bin /sbin /usr/bin /usr/sbin /proc /sys /dev /etc /run /root /tmp /var
for applet in $(busybox --list-full); do
  [ -e "/$applet" ] || busybox ln -s /bin/busybox "/$applet"
done

mount -t proc -o hidepid="$HIDEPID" proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs -o mode=1777 tmp /tmp
ip link set lo up
echo "root:x:0:0:root:/root:/bin/sh
user::$COMMAND_UID:$COMMAND_UID:user:/tmp:/bin/sh" > /etc/passwd
echo "root:x:0:
user:x:$COMMAND_UID:" > /etc/group

controllers='cpu cpuacct memory pids'
case $CGROUPS in
  v2) mount -t cgroup2 cgroup /sys/fs/cgroup ;;
  v1 | hybrid)
    mount -t tmpfs cgroup /sys/fs/cgroup
    for controller in $controllers; do
      mkdir "/sys/fs/cgroup/$controller"
      mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
    done
    if [ "$CGROUPS" = hybrid ]; then
      mkdir /sys/fs/cgroup/unified
      mount -t cgroup2 cgroup /sys/fs/cgroup/unified
    fi
    ;;
esac

for setting in $SYSCTLS; do
  sysctl -q -w "$setting"
done

# Raw mode: lines end as the command ends them.
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
set +e
if [ "$COMMAND_UID" = 0 ]; then
  sh /vm/command > /dev/ttyS1 2>&1 < /dev/null
else
  chmod 666 /dev/ttyS1
  su user -c 'sh /vm/command' > /dev/ttyS1 2>&1 < /dev/null
fi
echo "$?" > /dev/ttyS2
# This waits until the ports have sent everything that was written to them.
stty -F /dev/ttyS1 -echo
stty -F /dev/ttyS2 -echo
poweroff -f
