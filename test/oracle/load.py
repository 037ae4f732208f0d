#!/usr/bin/python3
# A seeded file load that knows what every file must hold, and checks it.
#
#   load.py work DEVICE MOUNT [options]     rounds of: mount, work, end; then one check and a manifest on stdout
#   load.py crash FOLDER [--seed N]         works for ever; prints "synced NAME GENERATION" once that is durable
#   load.py verify FOLDER < synced-lines    after the crash: every synced file is whole and not older
#
# work: several workers, each in a folder of its own, create, overwrite, truncate, rename, delete, punch, reflink, fsync,
# write through mappings and around the page cache. `--fill` fills the file system up once and empties it. A round ends with a clean unmount or a forced shutdown (everything that must survive
# is synced first). At a round's start, `--skip` writes files of the second transaction after the mount while the
# first one still commits: what a rule that computes with transaction numbers gets wrong.
#
# crash: files under keep/ are only ever replaced as a whole (write aside, fsync, rename, fsync the folder), and their
# content follows from name and generation; so whichever generation is found can be checked. churn/ just makes noise.

import argparse, ctypes, errno, fcntl, hashlib, mmap, os, random, struct, subprocess, sys, threading, time

BLOCK = 4096
SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, and its flag for "do not flush the journal"
NO_LOG_FLUSH = 2
CLONE = 0x40049409  # FICLONE
libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd, mode, at, length):
    """False where the file system can't do it."""
    return libc.fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(length)) == 0


def write_direct(path, at, data):
    """Around the page cache where the file system can; at and length are multiples of BLOCK."""
    buffer = mmap.mmap(-1, len(data))
    buffer.write(data)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o644)
    except OSError:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        assert os.pwritev(fd, [buffer], at) == len(data)
    finally:
        os.close(fd)
        buffer.close()


def write_mapped(path, at, data, durably):
    """Through a mapping of the file, which is long enough already."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[at : at + len(data)] = data
        if durably:
            mapping.flush()


def clone(source, target):
    """False where the file system has no reflinks; then the target is empty."""
    with open(source, "rb") as old, open(target, "wb") as new:
        try:
            fcntl.ioctl(new, CLONE, old.fileno())
            return True
        except OSError:
            return False


def fill_and_empty(folder):
    """Writes until there is no space, and deletes all of it again."""
    made = []
    block = random.randbytes(4 << 20)
    try:
        while True:
            made.append(os.path.join(folder, f"fill{len(made)}"))
            with open(made[-1], "wb", buffering=0) as file:
                for _ in range(8):
                    file.write(block)
                os.fsync(file.fileno())
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    for path in made:
        os.unlink(path)
    sync_file_system(folder)


def fsync(path, flags=os.O_RDONLY):
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Worker:
    """Works in its own folder, and keeps what each file there must hold."""

    def __init__(self, folder, seed, options):
        self.folder, self.random, self.options = folder, random.Random(seed), options
        self.files, self.made, self.rounds = {}, 0, 0

    def path(self, name):
        return os.path.join(self.folder, name)

    def size(self):
        r = self.random
        return r.randrange(1, 4096) if r.random() < 0.3 else r.randrange(1, self.options.max_kb * 1024)

    def patch(self, name, at, data):
        want = self.files[name]
        if at > len(want):
            want.extend(bytes(at - len(want)))
        want[at : at + len(data)] = data

    def create(self):
        self.made += 1
        name, data = f"f{self.made}", self.random.randbytes(self.size())
        with open(self.path(name), "wb") as file:
            file.write(data)
        self.files[name] = bytearray(data)
        return name

    def create_direct(self, name, blocks):
        data = self.random.randbytes(blocks * BLOCK)
        self.files[name] = bytearray(data)
        write_direct(self.path(name), 0, data)

    def step(self):
        r = self.random
        names = list(self.files)
        if len(names) < self.options.files // 4:
            return self.create()
        kind = r.choices(
            ["create", "delete", "write", "direct", "map", "clone", "truncate", "rename", "replace", "fsync", "punch", "reserve"],
            [22, 20, 10, 11, 4, 4, 6, 5, 6, 8, 4, 3],
        )[0]
        name = r.choice(names)
        path = self.path(name)
        if kind == "create" and len(names) < self.options.files:
            self.create()
        elif kind == "create" or kind == "delete":
            os.unlink(path)
            del self.files[name]
        elif kind == "write":
            data = r.randbytes(r.randrange(1, 65536))
            at = r.randrange(0, max(1, len(self.files[name])))
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(data)
            self.patch(name, at, data)
        elif kind == "direct":
            data = r.randbytes(BLOCK * r.randrange(1, 24))
            at = BLOCK * r.randrange(0, 16)
            write_direct(path, at, data)
            self.patch(name, at, data)
        elif kind == "map":
            size = len(self.files[name])
            if size > 0:
                at = r.randrange(0, size)
                data = r.randbytes(min(size - at, r.randrange(1, 65536)))
                write_mapped(path, at, data, r.random() < 0.3)
                self.patch(name, at, data)
        elif kind == "clone" and len(names) < self.options.files:
            self.made += 1
            copy = f"c{self.made}"
            self.files[copy] = bytearray(self.files[name] if clone(path, self.path(copy)) else b"")
        elif kind == "truncate":
            size = r.randrange(0, self.options.max_kb * 1024)
            os.truncate(path, size)
            want = self.files[name]
            if size < len(want):
                del want[size:]
            else:
                want.extend(bytes(size - len(want)))
        elif kind == "rename" or kind == "replace":
            other = r.choice(names) if kind == "replace" else f"r{self.made}-{r.randrange(1 << 30)}"
            if other == name:
                return
            os.rename(path, self.path(other))
            self.files[other] = self.files.pop(name)
        elif kind == "fsync":
            fsync(path)
        elif kind == "punch":
            size = len(self.files[name])
            at, length = r.randrange(0, size + 1), r.randrange(1, 65536)
            length = min(length, size - at)
            fd = os.open(path, os.O_RDWR)
            if length > 0 and fallocate(fd, 3, at, length):  # PUNCH_HOLE | KEEP_SIZE
                self.patch(name, at, bytes(length))
            os.close(fd)
        elif kind == "reserve" and not self.options.no_fallocate:
            at, length = len(self.files[name]), r.randrange(1, 131072)
            fd = os.open(path, os.O_RDWR)
            if fallocate(fd, 0, at, length):
                self.files[name].extend(bytes(length))
            os.close(fd)

    def work(self, stop):
        self.rounds += 1
        steps = 0
        while steps < self.options.ops if self.options.ops else time.monotonic() < stop:
            self.step()
            steps += 1
        return steps


def second_transaction(worker, round_number):
    """
    Without delayed allocation, in ordered mode, a commit first writes the data of the files that it allocated.
    While it does, the next transaction runs, and what goes around the page cache gets to the disk before the commit.
    """
    big, trigger = worker.path("big"), worker.path("trigger")
    with open(big, "wb", buffering=0) as file:
        for _ in range(24):
            file.write(worker.random.randbytes(1 << 20))
    open(trigger, "wb").close()
    flusher = threading.Thread(target=fsync, args=(trigger,))
    flusher.start()
    count = 0
    while flusher.is_alive() and count < 200:
        worker.create_direct(f"s{round_number}-{count}", 4)
        count += 1
    flusher.join()
    os.unlink(big)
    return count


def sync_file_system(path):
    fd = os.open(path, os.O_RDONLY)
    if libc.syncfs(fd) != 0:
        raise OSError(ctypes.get_errno(), "syncfs")
    os.close(fd)


def check(workers):
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3\n")
    wrong, manifest = [], []
    for worker in workers:
        for name, want in sorted(worker.files.items()):
            with open(worker.path(name), "rb") as file:
                if file.read() != want:
                    wrong.append(name)
            manifest.append(f"{hashlib.sha256(want).hexdigest()}  {os.path.basename(worker.folder)}/{name}")
    return wrong, manifest


class Snapshots:
    """Snapshots of a btrfs, the newest two of them, and what their files must hold."""

    def __init__(self, mount):
        self.mount, self.taken, self.count = mount, [], 0

    def take(self, manifest):
        self.count += 1
        path = os.path.join(self.mount, f".snapshot{self.count}")
        subprocess.run(["btrfs", "-q", "subvolume", "snapshot", "-r", self.mount, path], check=True)
        self.taken.append((path, manifest))
        if len(self.taken) > 2:
            subprocess.run(["btrfs", "-q", "subvolume", "delete", "-c", self.taken.pop(0)[0]], check=True)

    def check(self):
        wrong = []
        for path, manifest in self.taken:
            for line in manifest:
                want, name = line.split("  ", 1)
                with open(os.path.join(path, name), "rb") as file:
                    if hashlib.sha256(file.read()).hexdigest() != want:
                        wrong.append(f"{path}/{name}")
        return wrong


def end_round(options, round_number):
    mount = options.mount
    if options.shutdown and round_number < options.rounds - 1:
        sync_file_system(mount)
        for number in range(8):  # lost, or not: nobody was promised anything
            with open(os.path.join(mount, f"junk{number}"), "wb") as file:
                file.write(random.randbytes(100000))
        fd = os.open(mount, os.O_RDONLY)
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        os.close(fd)
    subprocess.run(["umount", mount], check=True)


def work(options):
    folders = [os.path.join(options.mount, f"w{number}") for number in range(options.workers)]
    workers = [Worker(folder, options.seed * 64 + number, options) for number, folder in enumerate(folders)]
    first = Worker(os.path.join(options.mount, f"w{options.workers}"), options.seed, options)  # nobody touches these again
    folders.append(first.folder)
    snapshots = Snapshots(options.mount)
    steps = seconds = 0
    for round_number in range(options.rounds):
        kind = ["-t", options.mount_type] if options.mount_type else []
        subprocess.run(["mount", *kind, "-o", options.mount_options, options.device, options.mount], check=True)
        for folder in folders:
            os.makedirs(folder, exist_ok=True)
        if options.skip:
            seconds += second_transaction(first, round_number)
        for number in range(8):
            try:
                os.unlink(os.path.join(options.mount, f"junk{number}"))
            except FileNotFoundError:
                pass
        stop = time.monotonic() + options.seconds
        results, failures = [], []

        def run(worker):
            try:
                results.append(worker.work(stop))
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            return 1
        steps += sum(results)
        if options.fill and round_number == 0:
            fill_and_empty(options.mount)
        if round_number == options.rounds - 1:
            sync_file_system(options.mount)
            wrong, manifest = check([*workers, first])
            wrong += snapshots.check()
        elif options.snapshots:
            snapshots.take(check([*workers, first])[1])
        end_round(options, round_number)
    for line in manifest:
        print(line)
    print(f"load: {steps} operations, {seconds} files of second transactions, {len(manifest)} files left", file=sys.stderr)
    for name in wrong:
        print(f"load: {name} reads back wrong", file=sys.stderr)
    return 1 if wrong else 0


def content_of(name, generation):
    source = random.Random(f"{name}:{generation}")
    size = source.choice([source.randrange(64, 4096), source.randrange(4096, 400000)])
    return f"{name}:{generation}\n".encode() + source.randbytes(size)


def crash(options):
    keep, churn = os.path.join(options.folder, "keep"), os.path.join(options.folder, "churn")
    os.makedirs(keep, exist_ok=True)
    os.makedirs(churn, exist_ok=True)
    fsync(options.folder)

    def keeper():
        source, generation = random.Random(options.seed), int(time.time() * 1000)
        while True:
            generation += 1
            name = f"k{source.randrange(40)}"
            aside = os.path.join(keep, f".{name}")
            data = content_of(name, generation)
            if source.random() < 0.3:
                write_direct(aside, 0, data + bytes(-len(data) % BLOCK))
                os.truncate(aside, len(data))
            else:
                with open(aside, "wb") as file:
                    file.write(data)
            fsync(aside)
            os.rename(aside, os.path.join(keep, name))
            fsync(keep)
            sys.stdout.write(f"synced {name} {generation}\n")
            sys.stdout.flush()

    settings = argparse.Namespace(max_kb=1024, files=60, ops=0, no_fallocate=False)
    worker = Worker(churn, options.seed + 1, settings)
    for name in os.listdir(churn):
        os.unlink(worker.path(name))
    thread = threading.Thread(target=keeper, daemon=True)
    thread.start()
    while thread.is_alive():
        worker.step()
        if worker.random.random() < 0.01:
            sync_file_system(options.folder)
    return 1


def verify(options):
    newest = {}
    for line in sys.stdin:
        words = line.split()
        if len(words) == 3 and words[0] == "synced":
            newest[words[1]] = int(words[2])
    wrong = []
    for name, synced in newest.items():
        try:
            with open(os.path.join(options.folder, "keep", name), "rb") as file:
                found = file.read()
        except OSError as error:
            wrong.append(f"{name}: {error}")
            continue
        head = found.split(b"\n", 1)[0].decode(errors="replace").split(":")
        if len(head) != 2 or head[0] != name or not head[1].isdigit():
            wrong.append(f"{name}: no header, expected generation {synced}")
        elif int(head[1]) < synced:
            wrong.append(f"{name}: generation {head[1]}, but {synced} was synced")
        elif found != content_of(name, int(head[1])):
            wrong.append(f"{name}: generation {head[1]} has other bytes than were written")
    print(f"verify: {len(newest)} files, {len(wrong)} wrong")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("work")
    command.add_argument("device")
    command.add_argument("mount")
    command.add_argument("--mount-options", default="commit=1")
    command.add_argument("--mount-type", default="")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--rounds", type=int, default=1)
    command.add_argument("--workers", type=int, default=3)
    command.add_argument("--ops", type=int, default=0)
    command.add_argument("--seconds", type=float, default=3)
    command.add_argument("--files", type=int, default=80)
    command.add_argument("--max-kb", type=int, default=300)
    command.add_argument("--no-fallocate", action="store_true")
    command.add_argument("--shutdown", action="store_true")
    command.add_argument("--skip", action="store_true")
    command.add_argument("--fill", action="store_true")
    command.add_argument("--snapshots", action="store_true")
    for name in ("crash", "verify"):
        command = commands.add_parser(name)
        command.add_argument("folder")
        command.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    return {"work": work, "crash": crash, "verify": verify}[options.command](options)


sys.exit(main())
