-- For those who use what dbt publishes.

set local role pipeline_owner;

create or replace function analytics.decode_app_version(app_version integer) returns text
language sql immutable strict parallel safe
return app_version / 1000000 || '.' || app_version / 1000 % 1000 || '.' || app_version % 1000;
comment on function analytics.decode_app_version is
'The version behind user_logins.app_version, in three parts: 2003000 is 2.3.0.';
grant execute on function analytics.decode_app_version(integer) to analyst, privacy_officer, transformer, masker;
