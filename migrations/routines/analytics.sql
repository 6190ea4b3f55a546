-- For those who use what dbt publishes.

set local role pipeline_owner;

create or replace function analytics.decode_app_version(app_version integer) returns text
language sql immutable strict parallel safe
return app_version / 1000000 || '.' || app_version / 1000 % 1000 || '.' || app_version % 1000;
comment on function analytics.decode_app_version(integer) is
'The version behind user_logins.app_version, in three parts: 2003000 is 2.3.0.';
grant execute on function analytics.decode_app_version(integer) to analyst, privacy_officer, transformer, masker;

-- Under twenty messages say nothing; and where there is no week before, a tenth passes for usual.
create or replace function analytics.rejections_jumped(
    accepted bigint, rejected bigint, landed_week_before bigint, rejected_week_before bigint
) returns boolean
language sql immutable strict parallel safe
return accepted + rejected >= 20
    and rejected > 0.05 * (accepted + rejected)
    and rejected > 3 * (accepted + rejected)
        * coalesce(rejected_week_before / nullif(landed_week_before, 0)::numeric, 0.1);
comment on function analytics.rejections_jumped(bigint, bigint, bigint, bigint) is
'Whether more than 5 % of a day''s messages were rejected, and three times the share of the week before.';
grant execute on function analytics.rejections_jumped(bigint, bigint, bigint, bigint)
to transformer, analyst, privacy_officer, monitor;

-- A union-find: the root of a tree is its smallest node, so that roots come before their nodes. SQL alone has no cheap
-- way: a recursive query carries each node to each other.
create or replace function analytics.components(nodes integer[], neighbours integer[]) returns integer[]
language plpgsql immutable strict parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    parents integer[] := array(
        select * from generate_series(1, (select max(node) from unnest(nodes || neighbours) as every (node)))
    );
    a integer;
    b integer;
begin
    for n in 1 .. cardinality(nodes) loop
        a := nodes[n];
        b := neighbours[n];
        while parents[a] <> a loop
            parents[a] := parents[parents[a]];
            a := parents[a];
        end loop;
        while parents[b] <> b loop
            parents[b] := parents[parents[b]];
            b := parents[b];
        end loop;
        parents[greatest(a, b)] := least(a, b);
    end loop;
    for node in 1 .. cardinality(parents) loop
        parents[node] := parents[parents[node]];
    end loop;
    return parents;
end $$;
comment on function analytics.components(integer[], integer[]) is
'Connected components of a graph: for each node, from 1, the smallest node that it is connected with. Link n connects
nodes[n] with neighbours[n].';
grant execute on function analytics.components(integer[], integer[]) to analyst, privacy_officer, transformer;
