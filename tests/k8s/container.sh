#!/bin/bash
# Imitates containers on machines without a container runtime: root file systems that are read-only except for
# their volumes, users that are not root, and a network and processes of their own. Source it in a shell under
#   unshare --mount --net --pid --fork --kill-child
# It reads the variables
#   FOLDER        an empty folder
#   REPOSITORY    the repository's root
#   PYTHON        the prefix of the Python interpreter
#   PACKAGES      the virtual environment, which may lie outside the repository
#   ENVIRONMENT   the image's variables
#   IMAGE         the root file system of Longview's image; empty for this machine's files in its place
set -eu

attach() {  # PATH: mount this machine's folder at the same path, read-only
    mkdir -p "$root$1"
    mount --bind "$1" "$root$1"
    mount -o remount,bind,ro "$root$1"
}
volume() {  # UID PATH: mount a volume at PATH that the user UID may write to
    mkdir -p "$root$2" "$FOLDER/volumes$2"
    chown "$1:$1" "$FOLDER/volumes$2"
    mount --bind "$FOLDER/volumes$2" "$root$2"
}
machine() {  # make a root file system of this machine's programs
    mount -t tmpfs root "$root"
    # First, because the repository or the packages may lie in this machine's /tmp.
    volume 10001 /tmp
    attach /usr
    for name in bin sbin lib lib64; do
        [ ! -e "/usr/$name" ] || ln -s "usr/$name" "$root/$name"
    done
    attach "$PYTHON"
    attach "$REPOSITORY"
    attach "$PACKAGES"
    mkdir -p "$root/etc" "$root/opt/bin"
    for name in ld.so.cache ld.so.conf ld.so.conf.d alternatives nsswitch.conf; do
        [ ! -e "/etc/$name" ] || cp -r "/etc/$name" "$root/etc/"
    done
    printf '%s\n' root:x:0:0::/:/bin/sh longview:x:10001:10001::/tmp:/bin/sh redis:x:999:999::/data:/bin/sh >"$root/etc/passwd"
    install -m 755 "$REPOSITORY/k8s/drain.sh" "$root/opt/bin/longview-drain"
}
image() {  # make a root file system of the image's, with places for volumes
    mkdir "$root.upper" "$root.work"
    mount -t overlay image -o "lowerdir=$IMAGE,upperdir=$root.upper,workdir=$root.work" "$root"
    volume 10001 /tmp
}
seal() {  # mount what a container runtime adds to a root file system, and make it read-only
    chmod 1777 "$root/tmp"
    printf '127.0.0.1 localhost longview-redis-local %s\n' "$(uname -n)" >"$root/etc/hosts"
    mkdir -p "$root/proc" "$root/dev"
    mount -t proc proc "$root/proc"
    mount -t tmpfs dev "$root/dev"
    mkdir "$root/dev/shm"
    for name in null zero random urandom tty; do
        : >"$root/dev/$name"
        mount --bind "/dev/$name" "$root/dev/$name"
    done
    mount -t tmpfs shm "$root/dev/shm"
    chmod 1777 "$root/dev/shm"
    volume 10001 /var/lib/longview
    volume 999 /data
    volume 999 /run/redis
    for name in longview redis; do  # ConfigMaps
        mkdir -p "$root/etc/$name"
        mount --bind "$FOLDER/$name" "$root/etc/$name"
        mount -o remount,bind,ro "$root/etc/$name"
    done
    mount -o remount,ro "$root"
}

mkdir "$FOLDER/machine" "$FOLDER/image"
root=$FOLDER/machine
machine
seal
if [ -n "$IMAGE" ]; then
    root=$FOLDER/image
    image
    seal
fi
python3 - <<'PY' || true
import fcntl, socket, struct  # brings the loopback device up without needing the package iproute2
with socket.socket() as any:
    fcntl.ioctl(any, 0x8914, struct.pack("16sh", b"lo", 1))
PY

container() {  # UID [NAME=VALUE ...] COMMAND [ARGUMENT ...]
    user=$1
    shift
    root=$FOLDER/machine path=/opt/bin:$PACKAGES/bin:/usr/local/bin:/usr/bin:/bin modules=$REPOSITORY
    if [ -n "$IMAGE" ] && [ "$user" = 10001 ]; then
        root=$FOLDER/image path=/opt/longview/bin:/usr/local/bin:/usr/bin:/bin modules=
    fi
    # shellcheck disable=SC2086
    chroot --userspec="$user:$user" --groups="$user" "$root" /usr/bin/env -i \
        PATH="$path" PYTHONPATH="$modules" $ENVIRONMENT "$@"
}
