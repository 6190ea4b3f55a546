-- migrate:up
-- Rotation of the masking keys. Keys apply in order: a token of version 2 is the token, under key 2, of the token of
-- version 1. So what was masked before can be carried over from the tokens alone, also when raw has been purged, and
-- equal values keep equal tokens. Keys are never deleted: each is a link of the chain.

set local role masker;

alter table masking.keys
    add column origin text not null default 'generated' check (origin in ('generated', 'imported'));
comment on column masking.keys.origin is 'Generated in this database, or imported by privacy/.';

-- What everybody who masks must agree on; dbt writes it into the boundary.
create function masking.key_version() returns integer
language sql stable parallel safe security definer set search_path = pg_catalog, pg_temp
return (select max(version) from masking.keys);

-- The token of today for a token of an earlier version. Takes nothing but tokens, so that it cannot be asked to mask an
-- address; still, whoever stole the first key could ask with tokens of their own making. That is why transformer, who
-- has to carry its tables over, may call it only while a rotation is open.
create function masking.carried_over(kind text, token text, from_version integer) returns text
language plpgsql stable strict parallel safe security definer set search_path = pg_catalog, pg_temp as $$
declare
    link record;
    version integer := from_version;
begin
    if token !~ '^[0-9a-f]{64}$' then
        raise exception 'masking.carried_over() takes tokens';
    end if;
    for link in
        select keys.version, keys.key from masking.keys
        where keys.kind = carried_over.kind and keys.version > from_version
        order by keys.version
    loop
        version := version + 1;
        if link.version <> version then
            raise exception 'masking.keys has no key of kind %, version %', kind, version;
        end if;
        token := masking.token(token, link.key);
    end loop;
    if version <> masking.key_version() then
        raise exception 'masking.keys has no key of kind %, version %', kind, version + 1;
    end if;
    return token;
end $$;

-- A rotation is open while transformer may carry tokens over: no state besides the grant itself.
create function masking.is_rotation_open() returns boolean
language sql stable
return has_function_privilege('transformer', 'masking.carried_over(text, text, integer)', 'execute');

-- For masker, after it has added the new keys, in the same transaction.
create function masking.open_rotation() returns void
language plpgsql as $$
begin
    grant execute on function masking.carried_over to transformer;
end $$;

create function masking.close_rotation() returns void
language plpgsql as $$
begin
    revoke execute on function masking.carried_over from transformer;
end $$;

grant execute on function masking.key_version() to transformer;

reset role;

-- migrate:down
-- none: the way back is a backup
