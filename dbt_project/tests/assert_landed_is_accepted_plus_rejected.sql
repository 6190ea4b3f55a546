-- Nothing is lost: what the ledger says has landed is accepted, rejected or erased, for all loads that dbt has taken.

with

taken as (

    select coalesce(max(load_id), 0) as load_id from {{ ref('int_messages__masked') }}

),

counted as (

    select
        (
            select coalesce(sum(loads.landed), 0) from {{ source('raw', 'loads') }} as loads
            where loads.load_id <= taken.load_id
        ) as landed,
        (select count(*) from {{ ref('user_logins') }}) as accepted,
        (select count(*) from {{ ref('rejected_messages') }}) as rejected,
        (
            select count(*) from {{ source('privacy', 'erased_messages') }} as erased_messages
            where erased_messages.load_id <= taken.load_id
        ) as erased
    from taken

)

select * from counted
where landed <> accepted + rejected + erased
