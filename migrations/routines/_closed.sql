-- What a file of this folder does not open is closed, also what was opened by hand: nobody may execute a function of
-- these schemas but its owner. (carried_over is opened and closed by a rotation, keys.sql; dbt makes and opens read_*.)
do $$
declare
    routine record;
begin
    for routine in
        select proc.oid::regprocedure as name, proc.proowner::regrole as owner, entry.grantee
        from pg_catalog.pg_proc as proc
        cross join lateral aclexplode(coalesce(proc.proacl, acldefault('f', proc.proowner))) as entry
        where
            proc.pronamespace::regnamespace::text in ('raw', 'masking', 'privacy', 'analytics')
            and proc.proowner in ('pipeline_owner'::regrole, 'masker'::regrole)
            and entry.grantee <> proc.proowner
            and proc.proname <> 'carried_over' and proc.proname not like 'read\_%'
    loop
        execute format('set local role %s', routine.owner);
        execute format(
            'revoke execute on function %s from %s',
            routine.name, case when routine.grantee = 0 then 'public' else routine.grantee::regrole::text end
        );
    end loop;
    reset role;
end $$;
