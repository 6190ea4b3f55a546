-- Landing: one number per landing transaction, and how far dbt may read.

set local role pipeline_owner;

-- Where each statement sees what was committed before it: a load the tombstones of an erasure, dbt the loads before its
-- window. Anybody may give a login or a database another level.
create or replace function raw.require_read_committed() returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'the isolation level READ COMMITTED is needed: '
            'reset default_transaction_isolation of this login and of the database';
    end if;
end $$;
grant execute on function raw.require_read_committed() to transformer;

create or replace function raw.signed_load_id(number text) returns text
language sql volatile set search_path = pg_catalog, pg_temp
as $$
    select number || ':' || masking.token(pg_current_xact_id() || ' ' || number, key) from privacy.tombstone_key
$$;

-- The number of this transaction, the same at each call. A shared advisory lock on a key that is not above 2^62 + the
-- last number, taken before the number and held until commit, tells safe_load_id() that this transaction may still
-- bring rows. A key that somebody else holds is passed over, downwards, so that nobody can make a loader wait; a
-- lower key only makes safe_load_id() more careful. The number is remembered in a setting local to the transaction,
-- which the caller could change as well, so it is signed. A writer that hangs in the middle of its transaction holds
-- back what dbt may read, so it is ended after a minute of silence.
create or replace function raw.current_load_id() returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    remembered text := current_setting('raw.load_id', true);
    number text := split_part(remembered, ':', 1);
    lock_key bigint;
    load_id bigint;
begin
    if remembered = raw.signed_load_id(number) then
        return number::bigint;
    end if;
    perform raw.require_read_committed();
    lock_key := 4611686018427387904 + (select last_load_id from raw.pipeline_state);
    while not pg_try_advisory_xact_lock_shared(lock_key) loop
        lock_key := lock_key - 1;
    end loop;
    load_id := nextval('raw.load_id_seq');
    perform set_config('raw.load_id', raw.signed_load_id(load_id::text), true);
    perform set_config('idle_in_transaction_session_timeout', '60s', true);
    return load_id;
end $$;
grant execute on function raw.current_load_id() to loader;

-- The first load_id that may still be in flight: every load below it has committed or rolled back, and a statement
-- begun after this one sees it. The sequence is read before the locks: a load that took its number before the first
-- reading and has no lock at the second is over. READ COMMITTED, because a later statement must see more.
-- Only locks of those who can load count, and only prepared transactions of theirs.
create or replace function raw.safe_load_id() returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    next_load_id bigint;
    in_flight bigint;
begin
    perform raw.require_read_committed();
    select last_load_id + 1 into next_load_id from raw.pipeline_state;
    select min((held.classid::bigint << 32 | held.objid::bigint) - 4611686018427387904) + 1
    into in_flight
    from pg_locks as held
    left join pg_stat_activity as session using (pid)
    where
        held.locktype = 'advisory'
        and held.objsubid = 1  -- a single 64-bit key, not two of 32 bits
        and held.classid::bigint between 536870912 and 2147483647  -- from 2^61: where current_load_id() looks for keys
        and held.database = (select oid from pg_database where datname = current_database())
        and (
            held.pid is null and exists (
                select from pg_prepared_xacts as prepared
                where
                    prepared.database = current_database()
                    and (
                        pg_has_role(prepared.owner, 'loader', 'member')
                        or pg_has_role(prepared.owner, 'pipeline_owner', 'member')
                    )
            )
            or pg_has_role(session.usesysid, 'loader', 'member')
            or pg_has_role(session.usesysid, 'pipeline_owner', 'member')
        );
    perform raw.await_workers();
    return least(next_load_id, in_flight);
end $$;
grant execute on function raw.safe_load_id() to transformer;

-- A row of the ledger is of the transaction that writes it, whatever number it is given.
create or replace function raw.in_this_load() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    new.load_id := raw.current_load_id();
    return new;
end $$;

create or replace trigger in_this_load before insert on raw.loads
for each row execute function raw.in_this_load();

-- So is a message: under another number, dbt would never read it, or read it before it is committed.
create or replace function raw.refuse_other_loads() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    this_load constant bigint := raw.current_load_id();
begin
    if exists (select from landed where load_id <> this_load) then
        raise exception 'load_id is not the one of this transaction, raw.current_load_id()'
            using errcode = 'invalid_parameter_value';
    end if;
    return null;
end $$;

select raw.call_after_landing('raw.refuse_other_loads');
