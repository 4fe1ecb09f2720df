/* Berkeley DB 5.3 for bdb.rs: an environment shared by processes, one B-tree in it, get and put.
 * Its structs hold function pointers that only C can call without repeating their layout. */
#include <db.h>
#include <stdlib.h>
#include <string.h>

struct bench_bdb {
    DB_ENV *env;
    DB *db;
};

void bench_bdb_close(struct bench_bdb *store) {
    if (store->db) store->db->close(store->db, 0);
    if (store->env) store->env->close(store->env, 0);
    free(store);
}

int bench_bdb_open(const char *dir, int transactional, unsigned cache_mib, struct bench_bdb **out) {
    struct bench_bdb *store = calloc(1, sizeof *store);
    u_int32_t env_flags = DB_CREATE | DB_INIT_MPOOL;
    u_int32_t db_flags = DB_CREATE;
    int error;
    if (!store) return 12;
    if (transactional) {
        env_flags |= DB_INIT_LOCK | DB_INIT_LOG | DB_INIT_TXN;
        db_flags |= DB_AUTO_COMMIT;
    } else {
        env_flags |= DB_INIT_CDB;
    }
    if ((error = db_env_create(&store->env, 0))) goto failed;
    if ((error = store->env->set_cachesize(store->env, cache_mib / 1024, (cache_mib % 1024) << 20, 1))) goto failed;
    if (transactional) {
        if ((error = store->env->set_lk_detect(store->env, DB_LOCK_DEFAULT))) goto failed;
        /* As kvd's `behind`: written, not synced. */
        if ((error = store->env->set_flags(store->env, DB_TXN_WRITE_NOSYNC, 1))) goto failed;
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

/* Copies the value; `*bytes` is its length even when there is no room (DB_BUFFER_SMALL). */
int bench_bdb_get(struct bench_bdb *store, const void *key, unsigned key_bytes, void *value, unsigned room,
                  unsigned *bytes) {
    DBT k, v;
    int error;
    memset(&k, 0, sizeof k);
    memset(&v, 0, sizeof v);
    k.data = (void *)key;
    k.size = key_bytes;
    v.data = value;
    v.ulen = room;
    v.flags = DB_DBT_USERMEM;
    error = store->db->get(store->db, NULL, &k, &v, 0);
    *bytes = v.size;
    return error == DB_NOTFOUND ? -1 : error;
}

int bench_bdb_put(struct bench_bdb *store, const void *key, unsigned key_bytes, const void *value, unsigned bytes) {
    DBT k, v;
    memset(&k, 0, sizeof k);
    memset(&v, 0, sizeof v);
    k.data = (void *)key;
    k.size = key_bytes;
    v.data = (void *)value;
    v.size = bytes;
    return store->db->put(store->db, NULL, &k, &v, 0);
}

const char *bench_bdb_version(void) { return db_version(NULL, NULL, NULL); }

const char *bench_bdb_error(int error) { return db_strerror(error); }
