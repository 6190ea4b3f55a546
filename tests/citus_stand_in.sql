-- Plays Citus on one PostgreSQL, so that what dbt_project/macros/citus.sql and migrations/routines/citus.sql say runs where
-- there is no cluster: the functions and catalogs that they call. Tables stay where they are, and nothing is distributed. It
-- refuses four things that a real cluster (Citus 13.2.2, 14.0.1) refuses; tests/test_citus_stand_in.py tries each on both. It says
-- nothing about plans, rights on shards, keys, crashes or speed: tests/test_citus.py does, on a cluster.
-- A superuser runs this in the database, in place of `create extension citus`.

set allow_system_table_mods = on;

create table pg_catalog.pg_dist_node (
    nodename text, nodeport integer, groupid integer, noderole text default 'primary', isactive boolean default true,
    shouldhaveshards boolean default true
);
insert into pg_catalog.pg_dist_node (nodename, nodeport, groupid) values ('coordinator', 5432, 0);
create table pg_catalog.pg_dist_partition (logicalrelid regclass primary key, colocationid integer);
grant select on pg_catalog.pg_dist_node, pg_catalog.pg_dist_partition to public;
create sequence pg_catalog.pg_dist_colocationid_seq minvalue 2;  -- 1 is of tables that are colocated by default

-- Rules are kept by policies; functions that erase and purge read no table that has any, and so do not run here.

create function pg_catalog.stand_in_change() returns trigger language plpgsql as $$
declare
    group_of text;
    changed_by text;
begin
    if tg_op = 'UPDATE' and pg_catalog.current_query() ~* '\mset\M.*=\s*masking\.(token|masked|carried_over)\M' then
        raise exception 'STABLE functions used in UPDATE queries cannot be called with column references';
    end if;
    select 'stand_in.group_' || colocationid into group_of from pg_catalog.pg_dist_partition where logicalrelid = tg_relid;
    changed_by := nullif(pg_catalog.current_setting(group_of, true), '');
    if changed_by <> current_user then
        raise exception 'cannot perform query on placements that were modified in this transaction by a different user';
    end if;
    perform pg_catalog.set_config(group_of, current_user, true);
    return null;
end $$;

create function pg_catalog.stand_in_may_see(colocationid integer) returns boolean language plpgsql stable as $$
begin
    if nullif(pg_catalog.current_setting('stand_in.group_' || colocationid, true), '') <> current_user then
        raise exception 'cannot perform query on placements that were modified in this transaction by a different user';
    end if;
    return true;
end $$;

create function pg_catalog.create_distributed_table(
    table_name regclass, distribution_column text, distribution_type text default 'hash', colocate_with text default 'default'
) returns void language plpgsql security definer as $$
declare
    colocationid integer := case colocate_with
        when 'none' then nextval('pg_catalog.pg_dist_colocationid_seq')
        when 'default' then 1
        else (select p.colocationid from pg_catalog.pg_dist_partition as p where logicalrelid = colocate_with::regclass)
    end;
begin
    if exists (select from pg_catalog.pg_trigger where tgrelid = table_name and not tgisinternal) then
        raise exception 'cannot distribute relation "%" because it has triggers', table_name;
    end if;
    if exists (
        select from pg_catalog.pg_index join pg_catalog.pg_attribute on attrelid = indrelid and attname = distribution_column
        where indrelid = table_name and indisunique and attnum <> all(indkey)
    ) then
        raise exception 'cannot create constraint on "%": distributed relations need the distribution column in it', table_name;
    end if;
    insert into pg_catalog.pg_dist_partition values (table_name, colocationid);
    if table_name <> 'raw.sqs_messages'::regclass then
        return;  -- privacy's functions read no table with row security
    end if;
    execute format(
        'create trigger stand_in before insert or update or delete on %s execute function pg_catalog.stand_in_change();'
        'alter table %1$s enable row level security, force row level security;'
        'create policy stand_in on %1$s using (pg_catalog.stand_in_may_see(%s)) with check (true)',
        table_name, colocationid
    );
end $$;

create function pg_catalog.truncate_local_data_after_distributing_table(table_name regclass) returns void
language sql return null;

-- Prepared transactions are the whole server's, so that its workers may be itself.
create function pg_catalog.run_command_on_workers(command text, parallel boolean default true)
returns table (nodename text, nodeport integer, success boolean, result text) language plpgsql as $$
begin
    for nodename, nodeport in select node.nodename, node.nodeport from pg_catalog.pg_dist_node as node where groupid > 0 loop
        success := nodeport <> 1;
        result := 'connection refused';
        if success then
            execute command into result;
        end if;
        return next;
    end loop;
end $$;
