/* Berkeley DB 5.3 for bdb.rs: an environment shared by processes, one B-tree in it, plain and transactional work on it.
 * Its structs hold function pointers that only C can call without repeating their layout. */
#include <db.h>
#include <stdlib.h>
#include <string.h>

enum { BENCH_NOT_FOUND = -1, BENCH_DEADLOCK = -2 };

struct bench_bdb {
    DB_ENV *env;
    DB *db;
    int transactional;
    DB_TXN *txn;   /* TDS: open between begin and end. */
    DBC *write;    /* CDS: the write cursor that is open between begin and end. */
    DBC *scan;
};

struct bench_bdb_options {
    int transactional;
    int youngest; /* Who goes at a deadlock: the youngest, or whoever the library picks. */
    int nosync;   /* TDS: the log of a commit stays in shared memory; otherwise it is written, not synced. */
    int recover;  /* Run recovery first: nobody else may have the environment open. */
    unsigned cache_mib;
};

static int answer(int error) {
    switch (error) {
    case DB_NOTFOUND: return BENCH_NOT_FOUND;
    case DB_LOCK_DEADLOCK:
    case DB_LOCK_NOTGRANTED: return BENCH_DEADLOCK;
    default: return error;
    }
}

void bench_bdb_close(struct bench_bdb *store) {
    if (store->db) store->db->close(store->db, 0);
    if (store->env) store->env->close(store->env, 0);
    free(store);
}

int bench_bdb_open(const char *dir, const struct bench_bdb_options *options, struct bench_bdb **out) {
    struct bench_bdb *store = calloc(1, sizeof *store);
    u_int32_t env_flags = DB_CREATE | DB_INIT_MPOOL;
    u_int32_t db_flags = DB_CREATE;
    unsigned mib = options->cache_mib;
    int error;
    if (!store) return 12;
    store->transactional = options->transactional;
    if (options->transactional) {
        env_flags |= DB_INIT_LOCK | DB_INIT_LOG | DB_INIT_TXN | (options->recover ? DB_RECOVER : 0);
        db_flags |= DB_AUTO_COMMIT;
    } else {
        env_flags |= DB_INIT_CDB;
    }
    if ((error = db_env_create(&store->env, 0))) goto failed;
    if ((error = store->env->set_cachesize(store->env, mib / 1024, (mib % 1024) << 20, 1))) goto failed;
    if (options->transactional) {
        u_int32_t policy = options->youngest ? DB_LOCK_YOUNGEST : DB_LOCK_DEFAULT;
        u_int32_t sync = options->nosync ? DB_TXN_NOSYNC : DB_TXN_WRITE_NOSYNC;
        if ((error = store->env->set_lk_detect(store->env, policy))) goto failed;
        if ((error = store->env->set_flags(store->env, sync, 1))) goto failed;
    } else if (options->recover) {
        /* CDS has no recovery: what is left of an environment is thrown away, the data file stays. */
        DB_ENV *old;
        if ((error = db_env_create(&old, 0))) goto failed;
        if ((error = old->remove(old, dir, DB_FORCE))) goto failed;
    }
    if ((error = store->env->open(store->env, dir, env_flags, 0600))) goto failed;
    if ((error = db_create(&store->db, store->env, 0))) goto failed;
    if ((error = store->db->open(store->db, NULL, "items.db", NULL, DB_BTREE, db_flags, 0600))) goto failed;
    *out = store;
    return 0;
failed:
    bench_bdb_close(store);
    return error;
}

static DBT room_of(void *data, unsigned room) {
    DBT dbt;
    memset(&dbt, 0, sizeof dbt);
    dbt.data = data;
    dbt.ulen = room;
    dbt.flags = DB_DBT_USERMEM;
    return dbt;
}

static DBT bytes_of(const void *data, unsigned bytes) {
    DBT dbt;
    memset(&dbt, 0, sizeof dbt);
    dbt.data = (void *)data;
    dbt.size = bytes;
    return dbt;
}

/* Copies the value; `*bytes` is its length even when there is no room (DB_BUFFER_SMALL). */
int bench_bdb_get(struct bench_bdb *store, const void *key, unsigned key_bytes, void *value, unsigned room,
                  unsigned *bytes) {
    DBT k = bytes_of(key, key_bytes);
    DBT v = room_of(value, room);
    int error;
    if (store->write) {
        error = store->write->get(store->write, &k, &v, DB_SET);
    } else {
        error = store->db->get(store->db, store->txn, &k, &v, store->txn ? DB_RMW : 0);
    }
    *bytes = v.size;
    return answer(error);
}

int bench_bdb_put(struct bench_bdb *store, const void *key, unsigned key_bytes, const void *value, unsigned bytes) {
    DBT k = bytes_of(key, key_bytes);
    DBT v = bytes_of(value, bytes);
    if (store->write) return answer(store->write->put(store->write, &k, &v, DB_KEYLAST));
    return answer(store->db->put(store->db, store->txn, &k, &v, 0));
}

/* From here to the end, get and put are one piece of work: a transaction, or what CDS has instead of it. */
int bench_bdb_begin(struct bench_bdb *store) {
    if (store->transactional) return answer(store->env->txn_begin(store->env, NULL, &store->txn, 0));
    return answer(store->db->cursor(store->db, NULL, &store->write, DB_WRITECURSOR));
}

int bench_bdb_end(struct bench_bdb *store, int commit) {
    DB_TXN *txn = store->txn;
    DBC *write = store->write;
    store->txn = NULL;
    store->write = NULL;
    if (write) return answer(write->close(write));
    return answer(commit ? txn->commit(txn, 0) : txn->abort(txn));
}

int bench_bdb_scan_begin(struct bench_bdb *store) {
    return answer(store->db->cursor(store->db, NULL, &store->scan, 0));
}

int bench_bdb_scan_next(struct bench_bdb *store, void *key, unsigned *key_bytes, void *value, unsigned *bytes) {
    DBT k = room_of(key, *key_bytes);
    DBT v = room_of(value, *bytes);
    int error = store->scan->get(store->scan, &k, &v, DB_NEXT);
    *key_bytes = k.size;
    *bytes = v.size;
    return answer(error);
}

int bench_bdb_scan_end(struct bench_bdb *store) {
    DBC *scan = store->scan;
    store->scan = NULL;
    return answer(scan->close(scan));
}

const char *bench_bdb_version(void) { return db_version(NULL, NULL, NULL); }

const char *bench_bdb_error(int error) { return db_strerror(error); }
