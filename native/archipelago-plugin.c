// SPDX-License-Identifier: BSD-2-Clause
/*
 * nbdkit's Python plugin, with one thing done before Python is asked: reading a range of one object in RADOS.
 *
 * Everything that a volume is belongs to Python (extstorage/). It says of some blocks: as long as nothing else is said,
 * this block is that object, byte for byte. A read within such a block is one operation of librados here, in nbdkit's
 * own thread, without the interpreter and its lock. Whatever is unusual (another kind of request, a block of which
 * nothing is said, two blocks at once, an error, an object that is missing) goes to Python, which also knows how to say
 * what is wrong. So this file decides nothing, and without it everything works the same, slower.
 *
 * Python reaches the functions below through the address that it gets as the parameter "direct"
 * (extstorage/direct_reads.py). Reading takes a client of its own: that of python3-rados is out of reach. The cluster
 * does not shut it out when somebody takes the volume over, so it has a deadline: Python puts it off for as long as
 * nobody can have done that.
 *
 * librados is loaded when it is needed first, so that volumes in files don't pay for it.
 */

#define NBDKIT_API_VERSION 2

#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <nbdkit-plugin.h>
#include <rados/librados.h>

#ifndef PYTHON_PLUGIN
#error "PYTHON_PLUGIN must be the path of nbdkit's Python plugin"
#endif

/* As in extstorage/names.py. */
#define BLOCK (UINT32_C(4) << 20)

/* Blocks that are known at a time: 128 GiB of a volume. A block has one place here; another one may take it. */
#define SLOTS 32768
#define LONGEST_NAME 80

/* Of what Python sees of this file; the same number in extstorage/direct_reads.py. */
#define VERSION 1

struct slot {
    uint64_t generation; /* 0 for none */
    uint64_t index;
    char name[LONGEST_NAME];
};

/* How to reach the objects. All strings; empty where the cluster's configuration says it. */
struct place {
    const char *conf, *user, *keyring, *pool, *space, *timeout;
};

/* The functions of librados that are used, with the types of its header. */
static struct {
    __typeof__(rados_create) *create;
    __typeof__(rados_conf_read_file) *conf_read_file;
    __typeof__(rados_conf_set) *conf_set;
    __typeof__(rados_connect) *connect;
    __typeof__(rados_shutdown) *shutdown;
    __typeof__(rados_ioctx_create) *ioctx_create;
    __typeof__(rados_ioctx_destroy) *ioctx_destroy;
    __typeof__(rados_ioctx_set_namespace) *ioctx_set_namespace;
    __typeof__(rados_create_read_op) *create_read_op;
    __typeof__(rados_read_op_read) *read_op_read;
    __typeof__(rados_read_op_operate) *read_op_operate;
    __typeof__(rados_release_read_op) *release_read_op;
} librados;

/* Guards the slots and the generation. Held for the length of a copy of a name. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct slot *slots;
static uint64_t generation = 1;

/* Held while the client comes or goes. */
static pthread_mutex_t connecting = PTHREAD_MUTEX_INITIALIZER;
static bool over;
static rados_t cluster;
static rados_ioctx_t context;

/* The context as long as reads are to use it, else NULL; and until when, in nanoseconds of CLOCK_BOOTTIME. */
static _Atomic(rados_ioctx_t) objects;
static _Atomic int64_t deadline;

static _Atomic uint64_t reads, read_bytes;

/* nbdkit's Python plugin, and what of it is called through here. */
static struct nbdkit_plugin python;

/* What Python calls. */

static int load_librados(void)
{
    void *library = dlopen("librados.so.2", RTLD_NOW | RTLD_LOCAL);

    if (!library)
        return -ELIBACC;
#define LOAD(name) \
    if (!(librados.name = (__typeof__(librados.name))dlsym(library, "rados_" #name))) \
        return -ELIBBAD;
    LOAD(create)
    LOAD(conf_read_file)
    LOAD(conf_set)
    LOAD(connect)
    LOAD(shutdown)
    LOAD(ioctx_create)
    LOAD(ioctx_destroy)
    LOAD(ioctx_set_namespace)
    LOAD(create_read_op)
    LOAD(read_op_read)
    LOAD(read_op_operate)
    LOAD(release_read_op)
#undef LOAD
    return 0;
}

static int configure(const struct place *place)
{
    int failed = librados.conf_read_file(cluster, place->conf);

    if (!failed && *place->keyring)
        failed = librados.conf_set(cluster, "keyring", place->keyring);
    /* Of the connection only. A read waits as long as the cluster needs, as a disk does. */
    if (!failed)
        failed = librados.conf_set(cluster, "client_mount_timeout", place->timeout);
    if (!failed)
        failed = librados.conf_set(cluster, "rados_mon_op_timeout", place->timeout);
    if (!failed)
        failed = librados.conf_set(cluster, "rados_osd_op_timeout", "0");
    /* The other client of this process may have the one whose name the configuration makes. */
    if (!failed)
        failed = librados.conf_set(cluster, "admin_socket", "");
    return failed;
}

static int reach(const struct place *place)
{
    int failed = load_librados();

    if (failed)
        return failed;
    failed = librados.create(&cluster, place->user);
    if (failed)
        return failed;
    failed = configure(place);
    if (!failed)
        failed = librados.connect(cluster);
    if (!failed)
        failed = librados.ioctx_create(cluster, place->pool, &context);
    if (failed) {
        librados.shutdown(cluster);
        return failed;
    }
    librados.ioctx_set_namespace(context, place->space);
    atomic_store(&objects, context);
    return 0;
}

/* Connects to the cluster; to be called once. 0, or a negative error number. Reads go to Python until then. */
static int direct_connect(const struct place *place)
{
    int failed = -ECANCELED;

    pthread_mutex_lock(&connecting);
    if (!over)
        failed = reach(place);
    pthread_mutex_unlock(&connecting);
    return failed;
}

/* Reads that begin later go to Python: somebody may have taken the volume over by then. */
static void direct_trust(int64_t until)
{
    atomic_store(&deadline, until);
}

/* Forgets all blocks. The answer is what `direct_allow` takes from now on; what has an older one is too late. */
static uint64_t direct_begin(void)
{
    uint64_t begun;

    pthread_mutex_lock(&lock);
    begun = ++generation;
    pthread_mutex_unlock(&lock);
    return begun;
}

/* The block is the object of that name, until `direct_forget` or `direct_begin`. */
static void direct_allow(uint64_t begun, uint64_t index, const char *name)
{
    size_t length = strlen(name);

    if (length >= LONGEST_NAME)
        return;
    pthread_mutex_lock(&lock);
    if (!slots)
        slots = calloc(SLOTS, sizeof *slots);
    if (slots && begun == generation) {
        struct slot *slot = &slots[index % SLOTS];

        slot->generation = begun;
        slot->index = index;
        memcpy(slot->name, name, length + 1);
    }
    pthread_mutex_unlock(&lock);
}

/* Reads of the block that begin after this call go to Python. */
static void direct_forget(uint64_t index)
{
    pthread_mutex_lock(&lock);
    if (slots && slots[index % SLOTS].index == index)
        slots[index % SLOTS].generation = 0;
    pthread_mutex_unlock(&lock);
}

/* Reads that were answered here, and their bytes. */
static void direct_count(uint64_t *count, uint64_t *bytes)
{
    *count = atomic_load(&reads);
    *bytes = atomic_load(&read_bytes);
}

/* The same in extstorage/direct_reads.py. The version comes first: half of an upgrade may be there when we start. */
static const struct {
    uint64_t version;
    __typeof__(direct_connect) *connect;
    __typeof__(direct_trust) *trust;
    __typeof__(direct_begin) *begin;
    __typeof__(direct_allow) *allow;
    __typeof__(direct_forget) *forget;
    __typeof__(direct_count) *count;
} interface = {
    VERSION, direct_connect, direct_trust, direct_begin, direct_allow, direct_forget, direct_count,
};

/* What nbdkit calls. */

static bool find(uint64_t index, char name[LONGEST_NAME])
{
    bool found = false;

    pthread_mutex_lock(&lock);
    if (slots) {
        const struct slot *slot = &slots[index % SLOTS];

        found = slot->generation == generation && slot->index == index;
        if (found)
            memcpy(name, slot->name, LONGEST_NAME);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

static bool is_trusted(void)
{
    struct timespec now;

    clock_gettime(CLOCK_BOOTTIME, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec < atomic_load(&deadline);
}

/* 0, or a negative error number. Behind an object's end there are zeros. (rados_read() copies the data once more.) */
static int read_object(rados_ioctx_t from, const char *name, void *buffer, uint32_t count, uint64_t offset)
{
    rados_read_op_t operation = librados.create_read_op();
    size_t length = 0;
    int failed = 0, result;

    librados.read_op_read(operation, offset, count, buffer, &length, &failed);
    result = librados.read_op_operate(operation, from, name, 0);
    librados.release_read_op(operation);
    if (result < 0 || failed < 0)
        return result < 0 ? result : failed;
    if (length < count)
        memset((char *)buffer + length, 0, count - length);
    return 0;
}

/* Python finds out what is wrong, and may say once more that the block is the object. */
static void leave_to_python(uint64_t index, int error)
{
    bool is_refused = error == -ESHUTDOWN || error == -EPERM || error == -EACCES;

    direct_forget(index);
    if (is_refused && atomic_exchange(&objects, NULL))
        nbdkit_error("reads go through Python from now on: %s", strerror(-error));
}

static bool read_directly(void *buffer, uint32_t count, uint64_t offset)
{
    char name[LONGEST_NAME];
    uint64_t index = offset / BLOCK, inside = offset % BLOCK;
    rados_ioctx_t from = atomic_load(&objects);
    int failed;

    if (!from || inside + count > BLOCK || !is_trusted() || !find(index, name))
        return false;
    failed = read_object(from, name, buffer, count, inside);
    if (failed) {
        leave_to_python(index, failed);
        return false;
    }
    atomic_fetch_add_explicit(&reads, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&read_bytes, count, memory_order_relaxed);
    return true;
}

static int archipelago_pread(void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
    if (read_directly(buffer, count, offset))
        return 0;
    return python.pread(handle, buffer, count, offset, flags);
}

static int archipelago_config_complete(void)
{
    char address[32];

    snprintf(address, sizeof address, "%" PRIuPTR, (uintptr_t)&interface);
    if (python.config("direct", address) == -1)
        return -1;
    return python.config_complete();
}

/* There is no connection any more. librados' threads must not outlive the process's exit(3) handlers. */
static void archipelago_unload(void)
{
    pthread_mutex_lock(&connecting);
    over = true;
    atomic_store(&objects, NULL);
    if (context) {
        librados.ioctx_destroy(context);
        librados.shutdown(cluster);
    }
    pthread_mutex_unlock(&connecting);
    if (python.unload)
        python.unload();
}

/* nbdkit asks for this by name (nbdkit-plugin(3), NBDKIT_REGISTER_PLUGIN). */
struct nbdkit_plugin *plugin_init(void);

struct nbdkit_plugin *plugin_init(void)
{
    /* Global: Python's own extension modules look for the interpreter's symbols. */
    void *library = dlopen(PYTHON_PLUGIN, RTLD_NOW | RTLD_GLOBAL);
    struct nbdkit_plugin *(*init)(void) = NULL;
    struct nbdkit_plugin *plugin;

    if (library)
        init = (__typeof__(init))dlsym(library, "plugin_init");
    if (!init) {
        fprintf(stderr, "archipelago: nbdkit's Python plugin can't be loaded: %s\n", dlerror());
        exit(EXIT_FAILURE);
    }
    plugin = init();
    /* It may be from a newer nbdkit, and longer; what we know of it never changes (nbdkit-plugin(3), ABI). */
    memcpy(&python, plugin, sizeof python < plugin->_struct_size ? sizeof python : plugin->_struct_size);
    plugin->pread = archipelago_pread;
    plugin->config_complete = archipelago_config_complete;
    plugin->unload = archipelago_unload;
    return plugin;
}
